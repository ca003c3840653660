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

FINAL = {"final/deployed", "final/qat", "final/fp", "final/bytes", "final/bops"}


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
    assert shown == {"rep", "mode", "quant.weight_bits", "final/fp", "final/deployed"}
    assert set(chosen) >= FINAL and chosen["final/bops"] == row["cost"]["bops"]
    assert chosen["final/deployed"] == row["metric"]["deployed"]
    assert {info.name.tag for info in experiment.metric_infos} == {"fp/val_top1", "qat/val_top1"}


def test_a_run_shows_loss_and_metric_first_and_its_figures(finished: Path) -> None:
    events = events_of(finished)
    tags = events.Tags()
    groups = {tag.partition("/")[0] for tag in (*tags["scalars"], *tags["images"], *tags["histograms"])}
    assert sorted(groups)[:2] == ["fp", "qat"] and not any(tag.startswith("final") for tag in tags["scalars"])
    for stage in ("fp", "qat"):
        own = [tag.partition("/")[2] for tag in sorted(tags["scalars"]) if tag.startswith(f"{stage}/")]
        assert own == ["loss", "lr", "train_loss", "train_top1", "val_top1"]
    shown = {tag: events.Images(tag)[0] for tag in events.Tags()["images"]}
    assert {"report/Step sizes, weights", "report/Step sizes, activations"} <= set(shown)
    assert {"report/Weights, blocks.0: branches", "report/Weights, blocks.0: merged, 8 bit (-128 to 127)"} <= set(shown)
    assert all(200 < picture.width < 450 for picture in shown.values()), "what a card shows without making it smaller"


def test_the_page_lists_every_run_under_its_folder_and_nothing_else(finished: Path, in_folder: Path) -> None:
    shutil.copytree(finished, in_folder / "outputs/train/one")
    shutil.copytree(finished, in_folder / "outputs/sweep/two/0")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(in_folder / "outputs")).Reload()
    assert set(multiplexer.Runs()) == {"train/one/tb", "sweep/two/0/tb"}
    provider = MultiplexerDataProvider(multiplexer, str(in_folder))
    context = Context(TBContext(data_provider=provider))
    columns = [api_pb2.ColParams(hparam="final/deployed", order=api_pb2.ORDER_DESC)]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=9, col_params=columns, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    groups = Handler(RequestContext(), context, "", request).run().session_groups
    assert sorted(group.name for group in groups) == ["sweep/two/0/tb", "train/one/tb"]
    assert groups[0].hparams["final/fp"].number_value == row_of(finished)["metric"]["fp"]
    assert {value.name.tag for value in groups[0].metric_values} == {"fp/val_top1", "qat/val_top1"}
