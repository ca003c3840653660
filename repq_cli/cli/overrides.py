"""The command line's overrides, checked one by one and all together, before Hydra runs anything.

Hydra stops at the first mistake with exit code 1; here all of them are found, each with the nearest right spelling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf, open_dict

from repq_cli.build import target_arguments
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.composing import Loader
from repq_cli.cli.config_folder import config_file
from repq_cli.cli.foreign import in_our_words
from repq_cli.cli.guesses import LONGEST_NAME, nearest_key, of_key, unknown_sections
from repq_cli.cli.hydra_app import plain
from repq_cli.cli.hydra_rules import SAMPLED, SWEEPERS, forbidden_key, problems_of
from repq_cli.cli.override_text import choices_of, once, text_of, values_of
from repq_cli.cli.paths import several_values
from repq_cli.cli.progress import told
from repq_cli.cli.torn import require_whole
from repq_cli.config import Config
from repq_cli.errors import ConfigError
from repq_cli.extras import installing
from repq_cli.problems import Problem, error_of
from repq_cli.schema import KEYS, resolved, validate
from repq_cli.targets import unnamed_plugins
from repq_cli.typecheck import nearest

APPENDED_GROUPS = ("model", "experiment", "sweep")  # absent from the primary defaults list: Hydra wants +group=
LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}  # our extras
SET_BY_CHOICE = ("model.name", "rep.name", "data.name", "mode.name", "optim.name", "schedule.name")


MOST_VALUES = 10_000  # of one key of a sweep


@dataclass(frozen=True)
class Composed:
    """What one run's overrides compose to; ``illegal``: legal words that do not go together."""

    overrides: list[str]
    config: Config
    illegal: list[Problem]


class Checker:
    """Checks overrides against the configuration tree (and a ``--config-dir`` of the user's).

    ``composed`` are, after ``check``, the configurations of all jobs of a sweep in its order, or of the one run.
    """

    def __init__(self, config_name: str, line: CommandLine) -> None:
        self.config_name, self.line = config_name, line
        self.loader = Loader(config_name, line.config_dir)
        self.problems: list[Problem] = []
        self.composed: list[Composed] = []
        self.overrides: list[Override] = []  # what was typed, in the form that Hydra wants
        self.hydra: dict[str, Any] = {}  # Hydra's own section of the first run
        self._trees: dict[tuple[str, ...], dict[str, Any]] = {}  # what has been composed, since that takes a while
        self._groups: dict[str, list[str]] = {}

    def check(self) -> CommandLine:
        """The command line in the form that Hydra wants. Raises ConfigError with every problem."""
        parsed = list(self._parse())
        if "model" in KEYS[self.config_name]:
            self._require_model()
        elif "data" in KEYS[self.config_name]:
            self._require_data()
        overrides = self._fit_form(parsed)
        groups = [override for override in overrides if self._is_group(override)]
        values = [override for override in overrides if not self._is_group(override)]
        groups = [override for override in groups if self._group_is_legal(override)]
        legal = [override for override in overrides if override in groups or override in values]
        tree = self._tree_of_keys(legal, groups)
        if any(problem.key.startswith("hydra.") for problem in self.problems):
            raise error_of(self.problems)  # nothing more is composed of what may not stand there
        if tree is not None:
            values = [override for override in values if self._key_is_known(override, tree)]
            self._check_composed([override for override in overrides if override in groups or override in values])
        if self.problems:
            raise error_of(self.problems)
        self.overrides = overrides
        return replace(self.line, overrides=[override.input_line or "" for override in overrides])

    def check_shown(self) -> list[str]:
        """The arguments as they are, of a command line that asks Hydra to print something, where that is safe.

        Hydra sets up its loggers before it prints; a mistake of another kind it reports itself.
        """
        parsed = list(self._parse())
        refused, self.problems = [found for found in self.problems if found.key.startswith("hydra")], []
        if not refused:
            self._compose([override.input_line or "" for override in parsed])
        refused += [found for found in self.problems if found.key.startswith("hydra")]
        if refused:
            raise error_of(refused)
        return self.line.arguments

    def _parse(self) -> Iterator[Override]:
        require_whole(self.line.overrides)
        parser = OverridesParser.create(config_loader=self.loader)
        for text in self.line.overrides:
            key, sign, value = text.partition("=")
            if not sign and not text.startswith("~"):
                said = "is no setting: write key=value" if text.strip() else "An empty word is no setting: leave it out"
                self.problems.append(Problem(text, ..., said))
                continue
            try:
                override = parser.parse_overrides([text])[0]
            except Exception:  # ANTLR and what comes behind it
                example = f"'{key}=\"{value}\"'" if value else "seed=1"
                self.problems.append(
                    Problem(key, value, f"cannot be read: it takes key=value without spaces, quoted like {example}")
                )
                continue
            wrong = forbidden_key(override.key_or_group)
            if wrong is not None:
                self.problems.append(Problem(override.key_or_group, value, wrong))
            elif override.is_sweep_override() and not self.line.multirun:
                self.problems.append(Problem(key, value, several_values(key, value, self.config_name)))
            elif not override.is_sweep_override() or (self.line.sampled and override.is_interval_sweep()):
                yield override
            elif override.is_discrete_sweep():
                count = len(list(itertools.islice(override.sweep_string_iterator(), MOST_VALUES + 1)))
                if 0 < count <= MOST_VALUES:
                    yield override
                else:
                    much = f"more than {MOST_VALUES} values" if count else "no value"
                    self.problems.append(Problem(key, value, f"names {much}; list those that are wanted"))
            else:
                self.problems.append(Problem(key, value, f"is an interval: list values, or add {SAMPLED}"))

    def _fit_form(self, overrides: list[Override]) -> list[Override]:
        """``model=``, ``experiment=`` and ``sweep=`` with or without ``+``, whichever Hydra wants."""
        brought = {key for override in overrides for key in self._brought(override)}
        parser = OverridesParser.create(config_loader=self.loader)
        fitted = []
        for override in overrides:
            if override.key_or_group in APPENDED_GROUPS and not override.is_delete():
                prefix = "" if override.key_or_group in brought else "+"
                text = (override.input_line or "").lstrip("+")
                override = parser.parse_overrides([prefix + text])[0]
            fitted.append(override)
        # An option is known by what its experiment brings only once the experiment has been added.
        return sorted(fitted, key=lambda override: override.key_or_group != "experiment")

    def _brought(self, override: Override) -> set[str]:
        """Groups of APPENDED_GROUPS that an experiment has in its own defaults list."""
        if override.key_or_group != "experiment":
            return set()
        found = set()
        for choice in values_of(override):
            defaults = config_file(f"experiment/{choice}.yaml", self.line.config_dir).get("defaults")
            for entry in defaults if isinstance(defaults, list) else ():
                found |= {key.lstrip("/") for key in entry} if isinstance(entry, dict) else set()
        return found & set(APPENDED_GROUPS)

    def _options(self, group: str) -> list[str]:
        """The options of a group, those of ``--config-dir`` included."""
        if group not in self._groups:
            self._groups[group] = self.loader.get_group_options(group)
        return self._groups[group]

    def _is_group(self, override: Override) -> bool:
        key = override.key_or_group
        return "." not in key and len(key) < LONGEST_NAME and bool(self._options(key))

    def _require_model(self) -> None:
        """Without a model there is nothing to compose, and nothing else worth saying yet."""
        if not any(text.lstrip("+").startswith(("model=", "experiment=")) for text in self.line.overrides):
            models = ", ".join(self._options("model"))
            self.problems += unknown_sections(self.line.overrides, self.config_name, self._options)
            raise error_of([*self.problems, Problem("+model", "???", f"has to be named: one of {models}")])

    def _require_data(self) -> None:
        """Keys of data that nobody chose have nothing to be keys of."""
        keys = [text.lstrip("+~").partition("=")[0] for text in self.line.overrides]
        if "data" not in keys and any(key.startswith("data.") for key in keys):
            raise ConfigError(
                "Keys of data need data itself: data=NAME data.KEY=VALUE; without any, the run's own is read."
            )

    def _group_is_legal(self, override: Override) -> bool:
        group = override.key_or_group
        options = list(SWEEPERS) if group == "hydra/sweeper" else self._options(group)
        if override.is_delete():
            self.problems.append(Problem(f"~{group}", text_of(override), "cannot be removed; choose another option"))
            return False
        wrong = [value for value in values_of(override) if str(value).removesuffix(".yaml") not in options]
        for value in wrong:
            near = nearest(value, options)
            hint = f"; did you mean '{near}'?" if near else ""
            if group == "hydra/launcher" and value in LAUNCHERS:
                hint = f"; {installing(LAUNCHERS[value])} brings this one"
            self.problems.append(Problem(group, value, f"must be one of {', '.join(options)}{hint}".rstrip(".")))
        return not wrong

    def _tree_of_keys(self, overrides: list[Override], groups: list[Override]) -> dict[str, Any] | None:
        """A tree that shows which keys there are: that of the first run where it can be composed, else of its groups.

        The first run is composed anyway, and Hydra refuses what sets unknown keys and does not say that it adds them.
        """
        if all(override in groups or override.type is OverrideType.CHANGE for override in overrides):
            with suppress(Exception):
                return self._tree([choices_of(override)[0] for override in overrides])
        return self._compose([choices_of(override)[0] for override in groups])

    def _compose(self, overrides: list[str]) -> dict[str, Any] | None:
        """The tree, or None where there is none; the reason is noted."""
        try:
            return self._tree(overrides)
        except Exception as error:  # of files and of interpolations, which raise nearly everything
            self.problems.append(Problem("configuration", " ".join(overrides), in_our_words(error)))
            return None

    def _tree(self, overrides: list[str]) -> dict[str, Any]:
        """What these compose to; each once."""
        key = tuple(overrides)
        if key not in self._trees:
            composed = self.loader.compose(self.config_name, overrides)
            hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
            with open_dict(composed):
                del composed["hydra"]
            self._trees[key] = own_keys(self.config_name, plain(composed))
            self.hydra = self.hydra or hydra
            self.problems += problems_of(hydra, self.line)
        return self._trees[key]

    def _key_is_known(self, override: Override, tree: dict[str, Any]) -> bool:
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            return True
        node: Any = tree
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                meant = of_key(key, text_of(override), self.config_name)
                hint = f"; write {meant}" if meant else nearest_key(key, tree)
                self.problems.append(Problem(key, text_of(override), f"is an unknown key{hint}"))
                return False
            node = node[part]
        if key in SET_BY_CHOICE:
            group = key.partition(".")[0]
            self.problems.append(
                Problem(key, text_of(override), f"comes with the choice of {group}=; choose another one")
            )
            return False
        if override.is_delete():
            self.problems.append(Problem(f"~{key}", text_of(override), "cannot be removed; set it instead"))
            return False
        return True

    def _check_composed(self, overrides: list[Override]) -> None:
        """Compose and validate every run that the overrides stand for.

        Once a mistake is known, only those that differ from the first run in one choice: they show all mistakes.
        """
        choices = [choices_of(override) for override in overrides]
        first = [texts[0] for texts in choices]
        candidates = [first]
        for index, texts in enumerate(choices):
            candidates += [[*first[:index], other, *first[index + 1 :]] for other in texts[1:]]
        complete = not self.problems
        training = "model" in KEYS[self.config_name]
        # In a sweep some pairs of legal words may be illegal: those runs are left out.
        alone = training and len(candidates) == 1
        trees = {tuple(candidate): self._validated(candidate, complete, alone) for candidate in candidates}
        if self.problems or not training:
            return
        runs = once(overrides) if self.line.multirun else overrides
        # Of what Optuna may propose only those are tried that are at a bound.
        several = [choices_of(override) for override in runs]
        tried = trees if self.line.sampled else itertools.product(*several)
        total = len(trees) if self.line.sampled else math.prod(map(len, several))
        for run in told(tried, total, "composing", self.line.quiet):
            tree = trees.get(run) or self._validated(list(run), True, False)
            if tree is not None:
                self.composed.append(self._settled(list(run), tree))
        if alone:
            self.problems += self.composed[0].illegal

    def _validated(self, overrides: list[str], complete: bool, combinations: bool) -> dict[str, Any] | None:
        """The tree, or None where there is none; its problems are noted."""
        tree = self._compose(overrides)
        if tree is not None and (said := unnamed_plugins(tree.get("plugins"), self.line.plugins)):
            self.problems.append(Problem("plugins", tree["plugins"], said))
        elif tree is not None:
            found = validate(tree, target_arguments, combinations=combinations, command=self.config_name)
            # Without a model, a missing section is no problem of its own.
            self.problems += found if complete else [problem for problem in found if problem.value != "???"]
        return tree

    @staticmethod
    def _settled(overrides: list[str], tree: dict[str, Any]) -> Composed:
        """A run with ``auto`` decided, or what does not go together in it."""
        illegal = validate(tree, target_arguments)
        if not illegal:
            tree = resolved(tree)
            illegal = validate(tree, target_arguments)
        return Composed(overrides, Config.of(tree), illegal)


def own_keys(command: str, tree: dict[str, Any]) -> dict[str, Any]:
    """A composed tree without what a group brings for other commands, such as the recipe of a data set."""
    return {key: value for key, value in tree.items() if key in KEYS[command]}
