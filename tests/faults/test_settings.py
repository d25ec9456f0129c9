"""Random settings on the real command line: taken, or refused with words; what is taken comes back from its file."""

import contextlib
import io
import random
import re
import sys
from pathlib import Path

from tally import Tally

from fastcifar.cli.main import main
from fastcifar.config import Config
from fastcifar.layers import from_dict
from fastcifar.spelling import allowed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NUMBERS = (*"0 1 -1 0.5 1e-3 1e400 nan inf -0.0 007 1_000 0x10 2147483648".split(), "9" * 400)
TEXTS = (*"auto true False none cpu cuda:99 é 猫 ../.. --lr =".split(), "", " ", "a b", "\x1b[31m", "\x00")
LISTS = ("1,2,3", "0.5,0.5,0.5", "1,2", ",,", "[1, 2, 3]", "(1)")


def value(name: str, choose: random.Random) -> str:
    """A value for a setting: one of those that are allowed in four of five cases."""
    field = Config.model_fields[name]
    if choose.random() < 0.8:
        words = re.findall(r"[\w.-]+", allowed(name))
        default = field.default
        return choose.choice([*words, str(default).strip("()"), str(default).strip("()"), str(default).strip("()")])
    return choose.choice((*NUMBERS, *TEXTS, *LISTS))


def misspelt(word: str, choose: random.Random) -> str:
    at = choose.randrange(len(word))
    return choose.choice(
        (word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + "x" + word[at + 1 :])
    )


def command(choose: random.Random) -> list[str]:
    good, bad = [[], ["quick"], ["--preset", "final"]], [["finl"], ["--preset"], ["quick", "final"]]
    words = ["train", *choose.choice(4 * good + bad)]
    for _ in range(choose.randrange(5)):
        name = choose.choice(list(Config.model_fields))
        option = f"--{name.replace('_', '-')}"
        if choose.random() < 0.05:
            option = misspelt(option, choose)
        text = value(name, choose)
        words += choose.choice(([option, text], [f"{option}={text}"], [option], [f"--no-{option[2:]}"]))
    return [word.replace("\x00", "") for word in words]  # no command line can hold a NUL


def test_random_settings(every: bool, tally: Tally, tmp_path: Path) -> None:
    choose, taken = random.Random(0), 0
    for _ in range(10_000 if every else 120):
        words = [*command(choose), "--print-config"]
        with tally.attempt(words):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(words)
            said = err.getvalue()
            assert not re.search(r"Traceback|unexpected \w+:|fault of fastcifar", said), said
            assert "\x1b" not in said and len(said) < 10_000, said[:1000]
            if code == 0:
                taken += 1
                settings = tomllib.loads(out.getvalue())
                assert from_dict(settings, "x").model_dump(mode="json") == settings.get("settings", settings)
            else:
                assert code == 2 and said.startswith("fastcifar: "), (code, said)
    assert taken > tally.tried // 10
    tally.check(at_least=10_000 if every else 120)
