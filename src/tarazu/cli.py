"""The commands. Nothing heavy is imported until one runs, so that `--help` answers at once.

Results go to stdout, everything else to stderr. Exit codes: 0, 1 (failed), 2 (bad input), 130 and 143 (stopped, resumable).
"""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tarazu import __version__
from tarazu.errors import TarazuError

app = typer.Typer(
    name="tarazu", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

# What the system says of a place that cannot be read or written, and what a user can do about it.
PLACES = {
    errno.EACCES: "give a place that you may read and write", errno.EPERM: "give a place that you may read and write", errno.EROFS: "give a place that can be written",
    errno.ENOSPC: "make room on that disk; a study goes on with `tarazu resume DIR`", errno.EDQUOT: "make room on that disk; a study goes on with `tarazu resume DIR`",
    errno.EFBIG: "give a place for larger files; a study goes on with `tarazu resume DIR`", errno.ENOENT: "check the path: a folder of it does not exist",
    errno.ENOTDIR: "check the path: a part of it is no folder", errno.EISDIR: "give a file: this is a folder", errno.ENAMETOOLONG: "give a shorter name",
}  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        print(f"tarazu {__version__}")
        raise typer.Exit


RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="a recipe (YAML); `tarazu new` lists the shipped ones"),
]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=C", help="override one key of the recipe; repeatable"),
]
Methods = Annotated[
    list[str], typer.Option("--method", metavar="M", help="only this method; repeatable")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="print the version and leave", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Weighs ways of training a model against each other: one recipe, the same data and budget, one report."""


@app.command()
def new(name: Annotated[str, typer.Argument(help="a shipped recipe to copy here")] = "") -> None:
    """List the shipped recipes, or copy one here."""
    from tarazu.recipe import shipped

    print(shipped.copy(name, Path.cwd()) if name else shipped.listing())


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Sets = [],  # noqa: B006
    method: Methods = [],  # noqa: B006
    rows: Annotated[int, typer.Option(min=0, help="rows to show")] = 3,
    measure: Annotated[
        bool,
        typer.Option(
            help="take three steps of each method; without: a range from the model's shape"
        ),
    ] = True,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="GPU",
            help="estimate for another device (H100, A100, T4, ...); measures nothing",
        ),
    ] = "",
    compare: Annotated[
        str,
        typer.Option(
            "--compare", metavar="DIR", help="put the runs of a finished study beside the estimate"
        ),
    ] = "",
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="write the result as JSON")
    ] = "",
    defaults: Annotated[
        bool, typer.Option("--defaults", help="print the recipe with every default too")
    ] = False,
    json: Json = False,
) -> None:
    """Show the rows, what will work here, and what it will take.

    Reads a recipe and its data, shows which tokens carry loss, and takes a few real steps of every method.
    """
    from tarazu.commands import check as work

    work.check(recipe, overrides, rows, json, measure, on, compare, out, defaults, method)


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder for the study")],
    method: Methods = [],  # noqa: B006
    overrides: Sets = [],  # noqa: B006
    extend: Annotated[
        bool,
        typer.Option("--extend", help="add this recipe's new methods or seeds to the study in DIR"),
    ] = False,
    estimate: Annotated[
        str,
        typer.Option(
            "--estimate",
            metavar="FILE",
            help="what `tarazu check --out FILE` measured; the report compares",
        ),
    ] = "",
) -> None:
    """Train and evaluate every method of a recipe; write the report.

    All under the same conditions: the same rows in the same order, the same budget.
    """
    from tarazu.commands import run as commands

    if extend and estimate:
        raise typer.BadParameter("--estimate is for a new study; leave it or --extend out")
    _finish(
        (
            commands.extend(recipe, out, overrides, method)
            if extend
            else commands.run(recipe, out, method, overrides, estimate)
        ).path
    )


@app.command()
def resume(folder: Annotated[str, typer.Argument(metavar="DIR", help="a run folder")]) -> None:
    """Go on exactly where a study stopped."""
    from tarazu.commands.run import resume as resume_study

    _finish(resume_study(folder).path)


@app.command()
def merge(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...", help="studies of one recipe: some of its methods or seeds in each"
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder for the whole")],
) -> None:
    """Put together the parts of a study that several devices ran.

    The parts must agree on everything but their methods, seeds and device. Then the report is written.
    """
    from tarazu.study import merge as work

    _finish(work.merge(parts, out).path)


@app.command()
def report(folder: Annotated[str, typer.Argument(metavar="DIR", help="a run folder")]) -> None:
    """Write report.html, results.csv and figures/ from a run folder."""
    from tarazu.report.build import build
    from tarazu.storage.run_folder import find_study

    print(build(find_study(folder).path))


@app.command()
def chat(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="DIR/METHOD...", help="a tuned model; several with --compare"),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="answer with every model, one after the other")
    ] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="ask this once and leave")] = "",
    system: Annotated[str, typer.Option(help="a system message")] = "",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy")] = 0.0,
    most: Annotated[int, typer.Option("--max-new-tokens", min=1, help="longest answer")] = 256,
) -> None:
    """Talk to a tuned model in the terminal."""
    from tarazu.chat.inference import terminal_chat

    terminal_chat.chat_loop(runs, compare, prompt, system, temperature, most)


@app.command()
def caption(
    run: Annotated[str, typer.Argument(metavar="DIR/METHOD", help="a trained captioning model")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="image files")],
    beam: Annotated[int, typer.Option(min=1, max=50, help="beam width; 1 is greedy")] = 3,
    heatmap: Annotated[
        str, typer.Option(metavar="OUT.png", help="write where the model looked, word by word")
    ] = "",
    json: Json = False,
) -> None:
    """Describe images."""
    from tarazu.captions.inference import caption_images as work

    work.caption(run, images, beam, heatmap or None, json)


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="DIR/METHOD", help="a finished run")],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="a new folder")],
    format: Annotated[
        str, typer.Option("--format", help="merged, peft or onnx; default: what the method can be")
    ] = "",
) -> None:
    """Write a merged model, a PEFT adapter, or ONNX for other tools."""
    from tarazu.commands import export as work

    print(work.export(run, to, format))


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
        typer.Option(
            "--api-key-env", metavar="VAR", help="the environment variable that holds the key"
        ),
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="M", help="the method that the others are held against")
    ] = "base",
    method: Methods = [],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, help="only the first so many questions")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait for one reply")] = 120,
) -> None:
    """Let another language model compare the answers. Optional.

    Every pair of answers is shown in both orders; nothing else needs this.
    """
    from tarazu.chat.evaluation import llm_judge as work
    from tarazu.chat.evaluation.openai_client import Endpoint

    server = Endpoint(endpoint, model, work.key_from(key), timeout)
    print(work.table(work.judge(folder, server, against, method, limit)))


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|DIR",
            help="a recipe, or a run folder, where verify.json is then written",
        ),
    ],
    method: Methods = [],  # noqa: B006
    overrides: Sets = [],  # noqa: B006
    json: Json = False,
    out: Annotated[
        str,
        typer.Option("--out", metavar="FILE", help="write the result as JSON, after each method"),
    ] = "",
) -> None:
    """Try the invariants on this model and this machine.

    Packed = unpacked, padded = unpadded, cached = uncached, resumed = uninterrupted, saved = loaded.
    """
    from tarazu.commands import verify as work

    work.verify(target, overrides, json, out, method)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine can do."""
    from tarazu.commands import doctor as work

    work.doctor(json)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from tarazu.recipe.schema import json_schema

    print(json_schema())


def _finish(folder: Path) -> None:
    """Report and table after a study."""
    from tarazu.commands import tables
    from tarazu.report.build import build

    page = build(folder)
    tables.show(folder)
    print(page)


def main() -> None:
    """The console script: named errors become one message and an exit code."""
    _hush()
    try:
        app(standalone_mode=False)
    except TarazuError as error:
        print(f"tarazu: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("tarazu: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in PLACES:
            raise
        print(
            f"tarazu: {error.filename or 'a file'}: {error.strerror}\n  what to do: {PLACES[error.errno]}",
            file=sys.stderr,
        )
        sys.exit(1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show()
            sys.exit(2)
        raise


def _hush() -> None:
    """Libraries' notices that a user can do nothing about; both come with every command that loads a model."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
        logging.ERROR
    )  # a faster 4-bit kernel for some CPUs is not installed
    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing` is deprecated"
    )  # peft asks transformers by its old name
