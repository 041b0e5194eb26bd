"""The command line. Nothing heavy is imported before a command runs, so that `--help` is fast.

Results go to stdout, everything else to stderr. Exit codes: 0, 1 (failed), 2 (wrong input), 130 and
143 (stopped by a signal; `tarazu resume` continues).
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tarazu import __version__
from tarazu.errors import SYSTEM_HINTS, TarazuError

app = typer.Typer(
    name="tarazu",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"tarazu {__version__}")
        raise typer.Exit


RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="a recipe (YAML); `tarazu new` lists the shipped ones"),
]
FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="a run folder")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=C", help="change one key of the recipe; repeatable"),
]
Methods = Annotated[
    list[str], typer.Option("--method", metavar="M", help="only this method; repeatable")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="print the version and exit", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Compare ways of training a model: one recipe, the same data and budget, one report."""


@app.command()
def new(name: Annotated[str, typer.Argument(help="a shipped recipe to copy here")] = "") -> None:
    """List the shipped recipes, or copy one here."""
    from tarazu.recipe import shipped

    print(shipped.copy(name, Path.cwd()) if name else shipped.listing())


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = [],  # noqa: B006
    method: Methods = [],  # noqa: B006
    rows: Annotated[int, typer.Option(min=0, help="rows to show")] = 3,
    measure: Annotated[
        bool,
        typer.Option(help="take a few steps of each method, or predict from the model's shape"),
    ] = True,
    on: Annotated[
        str,
        typer.Option(
            "--on", metavar="GPU", help="predict for another device, such as H100, A100 or T4"
        ),
    ] = "",
    compare: Annotated[
        str,
        typer.Option(
            "--compare", metavar="DIR", help="compare the estimate with the runs of a study"
        ),
    ] = "",
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="write the result as JSON")
    ] = "",
    defaults: Annotated[
        bool, typer.Option("--defaults", help="also print the recipe with every default")
    ] = False,
    json: Json = False,
) -> None:
    """Show the rows, which methods work here, and the cost.

    Reads a recipe and its data, shows which tokens have a loss, and takes a few real steps of every
    method.
    """
    from tarazu.commands import check as command

    command.check(recipe, overrides, rows, json, measure, on, compare, out, defaults, method)


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder for the study")],
    method: Methods = [],  # noqa: B006
    overrides: Overrides = [],  # noqa: B006
    extend: Annotated[
        bool,
        typer.Option("--extend", help="add this recipe's new methods or seeds to the study in DIR"),
    ] = False,
    estimate: Annotated[
        str,
        typer.Option(
            "--estimate",
            metavar="FILE",
            help="an estimate of `tarazu check --out FILE`, for the report to compare",
        ),
    ] = "",
) -> None:
    """Train and evaluate the methods of a recipe; write the report.

    All methods have the same rows in the same order and the same budget.
    """
    from tarazu.commands import run as command

    if extend and estimate:
        raise typer.BadParameter("--estimate is for a new study; leave it or --extend out")
    if extend:
        _finish(command.extend(recipe, out, overrides, method).path)
    else:
        _finish(command.run(recipe, out, method, overrides, estimate).path)


@app.command()
def resume(folder: FolderArgument) -> None:
    """Continue a study exactly where it stopped."""
    from tarazu.commands import run as command

    _finish(command.resume(folder).path)


@app.command()
def merge(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...", help="studies of one recipe, each with some methods or seeds"
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder for the study")],
) -> None:
    """Merge parts of a study that several devices ran.

    Then the report is written. The parts must agree in everything but methods, seeds and devices.
    """
    from tarazu.study import merge as command

    _finish(command.merge(parts, out).path)


@app.command()
def report(folder: FolderArgument) -> None:
    """Write report.html, results.csv and figures/ of a run folder."""
    from tarazu.report.build import build
    from tarazu.storage.run_folder import find_study

    print(build(find_study(folder).path))


@app.command()
def chat(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="DIR/METHOD...", help="a tuned model; several with --compare"),
    ],
    compare: Annotated[bool, typer.Option("--compare", help="answer with every model")] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="ask this once and exit")] = "",
    system: Annotated[str, typer.Option(help="a system message")] = "",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy")] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="maximum tokens of an answer")
    ] = 256,
) -> None:
    """Chat with a tuned model in the terminal."""
    from tarazu.chat.inference import terminal_chat

    terminal_chat.chat_loop(runs, compare, prompt, system, temperature, max_new_tokens)


@app.command()
def caption(
    run: Annotated[str, typer.Argument(metavar="DIR/METHOD", help="a trained captioning model")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="image files")],
    beam: Annotated[int, typer.Option(min=1, max=50, help="beam width; 1 is greedy")] = 3,
    heatmap: Annotated[
        str, typer.Option(metavar="OUT.png", help="write a heat map of the attention to each word")
    ] = "",
    json: Json = False,
) -> None:
    """Caption images with a trained model."""
    from tarazu.captions.inference import caption_images

    caption_images.caption(run, images, beam, heatmap or None, json)


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="DIR/METHOD", help="a finished run")],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="a new folder")],
    format: Annotated[
        str, typer.Option("--format", help="merged, peft or onnx; default: the method's own")
    ] = "",
) -> None:
    """Export a run: a merged model, a PEFT adapter, or ONNX."""
    from tarazu.commands import export as command

    print(command.export(run, to, format))


@app.command()
def judge(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a run folder of chat")],
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL", help="an OpenAI-compatible API, such as http://localhost:8000/v1"
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="the judge's name at that endpoint")],
    key: Annotated[
        str,
        typer.Option("--api-key-env", metavar="VAR", help="environment variable with the API key"),
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="M", help="the method that the others are compared with")
    ] = "base",
    method: Methods = [],  # noqa: B006
    limit: Annotated[int | None, typer.Option(min=1, help="only the first questions")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait for a reply")] = 120,
) -> None:
    """Compare answers with another language model as the judge.

    Every pair of answers is shown in both orders. No other command needs this one.
    """
    from tarazu.chat.evaluation import llm_judge
    from tarazu.chat.evaluation.openai_client import Endpoint

    server = Endpoint(endpoint, model, llm_judge.key_from(key), timeout)
    print(llm_judge.table(llm_judge.judge(folder, server, against, method, limit)))


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|DIR", help="a recipe, or a run folder, which then gets a verify.json"
        ),
    ],
    method: Methods = [],  # noqa: B006
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
    out: Annotated[
        str,
        typer.Option("--out", metavar="FILE", help="write the result as JSON, after each method"),
    ] = "",
) -> None:
    """Check the invariants on this model and this machine.

    Packed = unpacked, padded = unpadded, cached = uncached, resumed = uninterrupted, and
    saved = loaded.
    """
    from tarazu.commands import verify as command

    command.verify(target, overrides, json, out, method)


@app.command()
def doctor(json: Json = False) -> None:
    """Show what this machine can do."""
    from tarazu.commands import doctor as command

    command.doctor(json)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from tarazu.recipe.schema import json_schema

    print(json_schema())


def _finish(folder: Path) -> None:
    """Write the report of a study; print its results table and the report's path."""
    from tarazu.commands import tables
    from tarazu.report.build import build

    page = build(folder)
    tables.print_results(folder)
    print(page)


def main() -> None:
    """Run the command line. A named error becomes one message and an exit code."""
    _silence_libraries()
    try:
        app(standalone_mode=False)
    except TarazuError as error:
        print(f"tarazu: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("tarazu: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in SYSTEM_HINTS:
            raise
        path, hint = error.filename or "a file", SYSTEM_HINTS[error.errno]
        print(f"tarazu: {path}: {error.strerror}\n  what to do: {hint}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show()
            sys.exit(2)
        raise


def _silence_libraries() -> None:
    """Turn off two messages of libraries that come with every model and need no action."""
    # A faster 4-bit kernel for some CPUs is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # peft uses a deprecated name of transformers.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
