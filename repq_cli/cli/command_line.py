"""The arguments of a Hydra command, taken apart."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from repq_cli.cli.guesses import HYDRA_FLAGS, of_flag
from repq_cli.cli.paths import quoted, with_home
from repq_cli.errors import ConfigError

SHOWING = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
WITH_VALUE = ("--config-dir", "-cd", "--package", "-p", "--cfg", "-c")
CONFIG_NAMES = ("--config-name", "-cn", "--config-path", "-cp")
RUNNING = ("--multirun", "-m", "--run", "-r", "--config-dir", "-cd")
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass
class CommandLine:
    """Hydra's flags with their values, and overrides.

    typed: the overrides of the running command, to which those of a saved or a stored sweep are no part.
    """

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    typed: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, arguments: list[str], command: str = "train") -> CommandLine:
        """Tell flags (``-c job``, ``--cfg=job``) from overrides. Raises ConfigError for one that cannot be used."""
        line = cls()
        rest, names = list(arguments), []
        for text in rest:
            if any("\ud800" <= sign <= "\udfff" for sign in text):  # which no file of a run could hold
                raise ConfigError(f"The argument {text} is not in UTF-8: rename what it names.")
        while rest:
            argument = rest.pop(0)
            if not argument.startswith("-"):
                line.overrides.append(quoted(with_home(argument)))
                continue
            flag, joined, value = argument.partition("=")
            if flag in CONFIG_NAMES:
                raise ConfigError(f"The flag {flag} cannot be used: a command has one configuration; see --config-dir.")
            if flag not in HYDRA_FLAGS:
                following = rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else ""
                raise ConfigError(of_flag(flag, value or following, command))
            line.flags.append(argument)
            names.append(flag)
            if not joined and (
                flag in WITH_VALUE or (flag in ("--info", "-i") and rest[:1] and rest[0] in INFO_TOPICS)
            ):
                if not rest:
                    raise ConfigError(f"The flag {flag} takes a value; see --hydra-help.")
                value = rest.pop(0)
                line.flags.append(value)
            if flag in ("--config-dir", "-cd"):
                line.config_dir = os.path.expanduser(value)
        line.typed = list(line.overrides)
        line._refuse_flags(names)
        return line

    def _refuse_flags(self, names: list[str]) -> None:
        """Raises ConfigError for flags that do not go together, or that a run does not have."""
        modes = [name for name in names if name in ("--multirun", "-m", "--run", "-r")]
        if self.only_shows and modes:
            raise ConfigError(
                "Flags that show something (--cfg, --info) cannot be used with -m or -r: leave those out."
            )
        if len({name.strip("-")[0] for name in modes}) > 1:
            raise ConfigError(f"The flags {' and '.join(modes)} contradict each other: leave one out.")
        unknown = [name for name in names if name not in RUNNING]
        if unknown and not self.only_shows:
            raise ConfigError(
                f"A run has no flag {unknown[0]}: it has -m and --config-dir DIR, and --hydra-help lists what shows it."
            )

    @property
    def plugins(self) -> list[str]:
        """The packages that were typed: no file that the line brings may add to them."""
        values = [text.partition("=")[2] for text in self.typed if text.lstrip("+").startswith("plugins=")]
        return [name for value in values for name in re.findall(r"[\w.]+", value)]

    @property
    def typed_keys(self) -> list[str]:
        """The keys that were typed."""
        return [text.lstrip("+~").partition("=")[0] for text in self.typed]

    def has(self, *flags: str) -> bool:
        """Whether one of ``flags`` is given."""
        return any(flag.partition("=")[0] in flags for flag in self.flags)

    @property
    def only_shows(self) -> bool:
        """Whether Hydra is asked to print something rather than to run."""
        return self.has(*SHOWING)

    @property
    def multirun(self) -> bool:
        """Whether a sweep is asked for."""
        swept = any(override.lstrip("+").startswith("sweep=") for override in self.overrides)
        return swept or self.has("--multirun", "-m") or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def quiet(self) -> bool:
        """Whether only what goes wrong is to be said."""
        said = [override for override in self.overrides if override.startswith("verbosity=")]
        return said[-1:] == ["verbosity=quiet"]

    @property
    def sampled(self) -> bool:
        """Whether the jobs of the sweep are what Optuna proposes."""
        return any(override.removesuffix(".yaml") == "hydra/sweeper=optuna" for override in self.overrides)

    @property
    def arguments(self) -> list[str]:
        """Overrides and flags as Hydra takes them: flags last, or ``--info`` would take an override for its topic."""
        return [*self.overrides, *self.flags]
