import argparse
import time

from tests.simulation.world import simulate

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--bad", type=int, default=3)
    options = parser.parse_args()
    if options.seed is not None:
        report = simulate(options.seed)
        print("\n".join(report.trace), report.violation)
    else:
        bad = 0
        began = time.time()
        for seed in range(options.start, options.start + options.seeds):
            report = simulate(seed)
            if report.violation:
                bad += 1
                print(seed, report.violation[:300], flush=True)
                if bad >= options.bad:
                    break
        print(time.time() - began, "s", seed + 1 - options.start, "seeds")
