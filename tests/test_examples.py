"""The READMEs of the example models run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

from recurra.client import Client
from tests.service.processes import ServerProcess

REPOSITORY = Path(__file__).parents[1] / "models" / "repository"
SYLLABLES = "영일이삼사오육칠팔구십백천만"


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    process = ServerProcess(REPOSITORY, tmp_path_factory.mktemp("data"))
    try:
        yield process.start().address
    finally:
        process.close()


def test_numerals_reads_as_its_readme_says(examples: str):
    [code] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "numerals/README.md").read_text(), re.DOTALL)
    shown: list[object] = []
    exec(compile(code.replace("127.0.0.1:8500", examples), "README.md", "exec"), {"print": shown.append})
    assert shown == ["2026"]


def test_numerals_reads_many_sources_in_one_conversation(examples: str):
    numbers = {"만오천": "15000", "삼백이십일": "321", "구": "9", "팔천칠백육십오만사천삼백이십일": "87654321"}
    with Client(examples) as client:
        session = client.session("numerals", "a teller")
        for words, digits in numbers.items():
            source = np.array([SYLLABLES.index(syllable) for syllable in words])
            found = [session.predict([10], start=source).argmax()]
            while found[-1] != 10 and len(found) < 10:
                found.append(session.predict([found[-1]]).argmax())
            assert "".join(map(str, found[:-1])) == digits
