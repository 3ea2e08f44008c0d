import dataclasses
from pathlib import Path

import pytest

from recurra.server.settings import Settings, split_address


@pytest.fixture
def models(tmp_path: Path) -> str:
    folder = tmp_path / "models"
    folder.mkdir()
    return str(folder)


def refused(capsys, argv, environ=None) -> str:
    with pytest.raises(SystemExit) as stopped:
        Settings.parse(argv, environ or {})
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("recurra serve: ")
    assert line.count("\n") == 1
    return line


def test_defaults_are_safe(models):
    settings = Settings.parse(["--models", models], {})
    assert settings == Settings(
        models=Path(models),
        listen="127.0.0.1:8500",
        transport="grpc",
        store="embedded",
        replicas=1,
        data=Path("data"),
        provider="auto",
        states="auto",
        state_memory_bytes=1 << 30,
        cuda_graphs="off",
        workers=1,
        devices=(),
        model_control="none",
        threads=1,
        trial_seconds=120.0,
        cache=Path("~/.cache/recurra").expanduser(),
        metrics=None,
        queue_limit=8192,
        slots=16384,
        store_timeout_seconds=5.0,
        checkpoint_seconds=1.0,
        max_message_bytes=64 * 1024 * 1024,
        appendfsync="always",
        log_level="info",
        log_format="text",
        drain_seconds=10.0,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.listen = "0.0.0.0:1"


def test_a_flag_wins_over_its_variable_which_wins_over_the_default(models):
    environ = {"RECURRA_MODELS": models, "RECURRA_SLOTS": "8", "RECURRA_QUEUE_LIMIT": "9", "HOME": "/"}
    settings = Settings.parse(["--slots=7", "--metrics", "[::1]:0"], environ)
    assert (settings.slots, settings.queue_limit, settings.metrics) == (7, 9, "[::1]:0")
    assert Settings.parse(["--metrics=off"], environ | {"RECURRA_METRICS": "h:1"}).metrics is None


MALFORMED = {
    "models": ["", "/no/such/folder", "/etc/hostname"],
    "listen": ["", "8500", ":8500", "localhost", "localhost:", "localhost:65536", "localhost:-1", "::1:8500", "[::1]"],
    "transport": ["", "http"],
    "store": [
        *("", "redis", "http://h", "redis://", "redis://h:port", "redis://h/path", "redis://h#x", "unix://"),
        *("redis://h,g", "redis+cluster://", "redis+cluster://h:0", "redis+cluster://h:1,:2", "redis+cluster://h/1"),
        *("redis+sentinel://h", "redis+sentinel://h/", "redis+sentinel://h/a/b", "unix+cluster://h", "redis+ring://h"),
    ],
    "replicas": ["0", "two"],
    "data": ["", "/etc/hostname"],
    "provider": ["", "gpu", "CUDA"],
    "states": ["", "gpu"],
    "state_memory_bytes": ["0", "1GB"],
    "cuda_graphs": ["", "yes"],
    "workers": ["", "0", "all", "1025"],
    "devices": [
        "",
        "all",
        "cpu",
        "-1",
        "0,",
        ",0",
        "0,,1",
        "0, 1",
        "0;1",
        "0,0",
        "0,00",
        "GPU-",
        "GPU-5d,MIG-5d,GPU-5d",
    ],
    "model_control": ["", "poll"],
    "threads": ["0", "auto"],
    "trial_seconds": ["", "0", "never"],
    "cache": ["", "/etc/hostname"],
    "metrics": ["", "9090"],
    "queue_limit": ["", "0", "-1", "1.5", "many", "99999999"],
    "slots": ["0", "x"],
    "store_timeout_seconds": ["0", "-1", "nan", "inf", "5s"],
    "checkpoint_seconds": ["0", "-1", "nan", "inf", "1s"],
    "max_message_bytes": ["1", "64MiB", "2147483648"],
    "appendfsync": ["yes", "Always"],
    "log_level": ["loud"],
    "log_format": ["xml"],
    "drain_seconds": ["", "0", "soon"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in MALFORMED.items() for text in texts])
def test_a_malformed_value_stops_with_its_name_and_what_it_takes(capsys, models, name, text):
    flag, variable = "--" + name.replace("_", "-"), "RECURRA_" + name.upper()
    line = refused(capsys, ["--models", models, f"{flag}={text}"])
    assert line.startswith(f"recurra serve: {flag} takes ")
    line = refused(capsys, [], {"RECURRA_MODELS": models, variable: text})
    assert line.startswith(f"recurra serve: {variable} takes ")


def test_every_setting_is_held_against_malformed_values():
    assert set(MALFORMED) == {field.name for field in dataclasses.fields(Settings)}


def test_its_variables_give_the_same_settings(models):
    off = ["--trial-seconds", "off", "--cache", "off", "--metrics", "[::1]:0"]
    for flags in ([], ["--workers", "auto", *off], ["--devices", "0,GPU-5d-5e,MIG-GPU-5d/1/0", "--workers", "4"]):
        settings = Settings.parse(["--models", models, "--store", "redis://:a b@store/1", *flags], {})
        assert Settings.parse([], settings.variables()) == settings


@pytest.mark.parametrize(
    ("flags", "workers", "devices"),
    [
        (["--devices", "3"], 1, ("3",)),
        (["--devices", "0,1,03"], 3, ("0", "1", "3")),
        (["--devices", "GPU-5d,1", "--workers", "5", "--provider", "cuda"], 5, ("GPU-5d", "1")),
        (["--devices", "off", "--workers", "2", "--provider", "cpu"], 2, ()),
    ],
)
def test_there_is_a_worker_for_each_device_unless_more_are_asked_for(models, flags, workers, devices):
    settings = Settings.parse(["--models", models, *flags], {})
    assert (settings.workers, settings.devices) == (workers, devices)
    assert settings.public()["devices"] == (",".join(devices) or "off")


def test_devices_without_enough_workers_or_for_the_cpu_are_refused(capsys, models):
    line = refused(capsys, ["--models", models, "--devices", "0,1,2"], {"RECURRA_WORKERS": "2"})
    assert "--devices names 3 GPUs, but RECURRA_WORKERS is 2: each needs a worker of its own" in line
    line = refused(capsys, ["--models", models, "--provider", "cpu"], {"RECURRA_DEVICES": "0"})
    assert "RECURRA_DEVICES names GPUs, but --provider is cpu: leave one of them out" in line


@pytest.mark.parametrize(
    ("visible", "devices", "seen"),
    [
        ("2,3", "1,0", ("3", "2")),
        (" GPU-5d, 7", "0,1", ("GPU-5d", "7")),
        ("2,-1,3", "0,GPU-5e", ("2", "GPU-5e")),
    ],
)
def test_devices_are_numbered_in_what_cuda_is_told_to_show(models, visible, devices, seen):
    settings = Settings.parse(["--models", models, "--devices", devices], {"CUDA_VISIBLE_DEVICES": visible})
    assert settings.devices == seen


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("4", 1), ("4,-1,5", 1)])
def test_a_device_that_cuda_is_told_to_hide_is_refused(capsys, models, visible, count):
    line = refused(capsys, ["--models", models, "--devices", "0,1"], {"CUDA_VISIBLE_DEVICES": visible})
    assert (
        f"--devices names GPU {count and 1}, but CUDA_VISIBLE_DEVICES={visible!r} shows {count}, counted from 0" in line
    )


def test_a_missing_default_repository_names_the_flag_and_the_variable(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--models (RECURRA_MODELS) takes a folder that exists, not './models/repository'" in refused(capsys, [])


def test_an_unknown_flag_or_variable_suggests_the_closest(capsys, models):
    assert "unknown flag --lisen; did you mean --listen?" in refused(capsys, ["--lisen", "h:1"])
    assert "unknown flag --zzz; see --help" in refused(capsys, ["--zzz"])
    assert "--slot" in refused(capsys, ["--slot", "4"])  # no abbreviations: they break when a setting is added
    line = refused(capsys, ["--models", models], {"RECURRA_LISTN": "h:1"})
    assert "unknown variable RECURRA_LISTN; did you mean RECURRA_LISTEN?" in line
    assert "--listen" in refused(capsys, ["--listen"])


def test_the_variables_of_a_kubernetes_service_called_recurra_are_let_through(capsys, models):
    links = {
        "RECURRA_SERVICE_HOST": "10.0.0.1",
        "RECURRA_SERVICE_PORT": "8500",
        "RECURRA_SERVICE_PORT_GRPC": "8500",
        "RECURRA_PORT": "tcp://10.0.0.1:8500",
        "RECURRA_PORT_8500_TCP": "tcp://10.0.0.1:8500",
        "RECURRA_PORT_8500_TCP_ADDR": "10.0.0.1",
        "RECURRA_STORE_SERVICE_HOST": "10.0.0.2",
        "RECURRA_STORE_PORT_6379_TCP_PROTO": "tcp",
    }
    Settings.parse(["--models", models], links)
    assert "RECURRA_PORTS" in refused(capsys, ["--models", models], {"RECURRA_PORTS": "1"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@store:6379/0", "redis://***@store:6379/0"),
        ("rediss://me:hunter2@store?ssl_password=hunter2", "rediss://***@store?ssl_password=***"),
        ("unix:///run/valkey.sock?password=hunter2&db=1", "unix:///run/valkey.sock?password=***&db=***"),
        ("redis://store", "redis://store"),
        ("redis+cluster://me:hunter2@a:1,b:2,c", "redis+cluster://***@a:1,b:2,c"),
        ("rediss+cluster://[::1]:1,[::2]:3/", "rediss+cluster://[::1]:1,[::2]:3/"),
        (
            "redis+sentinel://:hunter2@a:1,b:2/main?sentinel_password=hunter2",
            "redis+sentinel://***@a:1,b:2/main?sentinel_password=***",
        ),
    ],
)
def test_the_stores_password_is_never_shown(models, url, shown):
    settings = Settings.parse(["--models", models, "--store", url], {})
    assert settings.store == url
    assert settings.public()["store"] == shown
    assert "hunter2" not in repr(settings) + str(settings.public())


@pytest.mark.parametrize(
    "argv",
    [
        ["--store", "http://:hunter2@store"],
        ["--stroe=redis://:hunter2@store"],
        ["--stroe", "redis://:hunter2@store"],
        ["redis://:hunter2@store"],
        ["--store", "redis://user:12/hunter2@store"],
        ["--store", "redis+sentinel://user:12/hunter2@store/main"],
    ],
)
def test_a_refused_line_shows_no_password(capsys, models, argv):
    assert "hunter2" not in refused(capsys, ["--models", models, *argv])


def test_help_tells_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        Settings.parse(["--help"], {})
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in told for name in MALFORMED)


def test_an_address_splits_into_host_and_port():
    assert split_address("localhost:0") == ("localhost", 0)
    assert split_address("[::1]:8500") == ("::1", 8500)
