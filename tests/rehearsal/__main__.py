"""`python -m tests.rehearsal -m bench.gpu --quick --provider cuda`: Python with what follows, rehearsed.

STANDIN_LOG=FILE has each call of a CUDA library written there.
"""

import os
import sys

from tests.rehearsal import rehearsal, standin

standin.built()
sys.stderr.write("A rehearsal of CUDA on stand-in libraries: nothing is computed, and no time is that of a GPU.\n")
os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | rehearsal.environment())
