"""TensorBoard's HParams page: every run is a line of choices and final metrics that its own backend reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from conftest import row_of
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

METRICS = {"final/deployed", "final/qat", "final/fp", "final/bytes", "final/bops"}


def events_of(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tb")).Reload()


def test_a_run_says_what_was_chosen_and_what_came_of_it(finished: Path) -> None:
    events, row = events_of(finished), row_of(finished)
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    chosen = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    expected: dict[str, Any] = {key: row[key] for key in ("model", "rep", "mode", "data", "seed")}
    expected |= {
        f"quant.{key}": row["quant"][key] for key in ("weight_bits", "act_bits", "weight_method", "granularity")
    }
    expected |= {"quant.first_last": "8", "fp.epochs": 1, "qat.epochs": 1, "model.width": 0.125, "metric": "top1"}
    assert expected.items() <= chosen.items() and chosen["fp.lr"] > chosen["qat.lr"] > 0
    content = events.summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {info.name for info in experiment.hparam_infos} == set(chosen)
    assert not any(info.WhichOneof("domain") for info in experiment.hparam_infos), "others would not be shown"
    shown = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown == {"model", "rep", "mode", "quant.weight_bits", "quant.act_bits"}
    assert {info.name.tag for info in experiment.metric_infos} == METRICS <= set(events.Tags()["scalars"])
    (last,) = events.Scalars("final/deployed")
    assert last.step == events.Scalars("qat/val_top1")[-1].step
    assert round(last.value, 4) == round(row["metric"]["deployed"], 4)
    assert events.Scalars("final/bops")[0].value == row["cost"]["bops"]


def test_a_run_shows_its_figures(finished: Path) -> None:
    events = events_of(finished)
    assert {"Weights", "Step sizes", "Training: digits"} <= set(events.Tags()["images"])
    assert all(events.Images(tag)[0].width > 500 for tag in events.Tags()["images"])


def test_the_page_lists_every_run_under_its_folder_and_nothing_else(finished: Path, in_folder: Path) -> None:
    shutil.copytree(finished, in_folder / "outputs/train/one")
    shutil.copytree(finished, in_folder / "outputs/sweep/two/0")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(in_folder / "outputs")).Reload()
    assert set(multiplexer.Runs()) == {"train/one/tb", "sweep/two/0/tb"}
    provider = MultiplexerDataProvider(multiplexer, str(in_folder))
    context = Context(TBContext(data_provider=provider))
    columns = [api_pb2.ColParams(metric=api_pb2.MetricName(tag="final/deployed"), order=api_pb2.ORDER_DESC)]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=9, col_params=columns, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    groups = Handler(RequestContext(), context, "", request).run().session_groups
    assert sorted(group.name for group in groups) == ["sweep/two/0/tb", "train/one/tb"]
    values = {value.name.tag: value.value for value in groups[0].metric_values}
    assert set(values) == METRICS and round(values["final/fp"], 4) == round(row_of(finished)["metric"]["fp"], 4)
