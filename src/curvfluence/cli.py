"""The command line: builds the same objects as the library, and shows what they give."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from curvfluence._version import __version__
from curvfluence.errors import CurvfluenceError, CurvfluenceWarning, InputError, NotKeptError
from curvfluence.runtime.child import is_child
from curvfluence.runtime.log import shown

if TYPE_CHECKING:
    from curvfluence.study.progress import Watcher
    from curvfluence.study.variant import Value

LEAST_MODELS = 8  # influence models of a study that a claim rests on
VARIANT_SUBSETS = 40  # of each variant, unless told

# Options and arguments that several commands have in common.
ProblemName = Annotated[str, typer.Argument(help="A built-in problem, or a Python file.")]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.")]
SubsetCount = Annotated[
    int | None, typer.Option(help="Random subsets; the problem's own number unless given.")
]
Models = Annotated[int, typer.Option(help="Influence models (initialisations).")]
Orders = Annotated[int, typer.Option(help="Minibatch orders of each subset.")]
Depth = Annotated[int | None, typer.Option(help="Hidden layers; the problem's own.")]
Width = Annotated[int | None, typer.Option(help="Of all hidden layers; the first's.")]
Epochs = Annotated[int | None, typer.Option(help="Of training; the problem's own.")]
RungNames = Annotated[
    str | None, typer.Option(help="Rungs of the ladder, by comma; all unless given.")
]
ProtocolName = Annotated[
    str,
    typer.Option(
        help="clean: exact factors. paper: one-sample factors, no decay, cosine. table1: the "
        "paper's own nets (tanh, no biases), every Fisher type, errors of inverses. frontier: "
        "every rung, Fisher type and form."
    ),
]
DType = Annotated[str, typer.Option(help="float32 or float64.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores unless given.")]
Jobs = Annotated[int | None, typer.Option(help="Studies at a time; as many as cores unless given.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another command that writes to the folder.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bars.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvfluence {__version__}")
        raise typer.Exit


@app.callback()
def curvfluence(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Tell what is done, and what is read again.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option(help="Tell it to the end of a file: --log-file FILE study ….")
    ] = None,
) -> None:
    """Which training data made the model do this, and how far can the answer be trusted?"""
    context.with_resource(shown(verbose, log_file))


@app.command()
def study(
    problem: Annotated[
        str,
        typer.Argument(
            help="A built-in problem (digits, digits-large, digits-noisy, mnist5k, breast_cancer, "
            "wine, diabetes, autompg, boston, mnist-lr, mnist-mlp, mnist-cnn, text), or a Python "
            "file of your own."
        ),
    ],
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/PROBLEM unless given.")] = None,
    subsets: SubsetCount = None,
    models: Models = 4,
    alpha: Annotated[float, typer.Option(help="Fraction of the data that a subset keeps.")] = 0.5,
    depth: Depth = None,
    width: Width = None,
    epochs: Epochs = None,
    rungs: RungNames = None,
    threads: Threads = None,
    dtype: DType = "float32",
    protocol: ProtocolName = "clean",
    bank: Annotated[
        Path | None,
        typer.Option(help="Folder of retrainings to read and to add to; OUT/bank unless given."),
    ] = None,
    bregman: Annotated[
        bool,
        typer.Option(help="Hold every rung against the proximal Bregman response as well."),
    ] = True,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Compute again what the folder already holds.")
    ] = False,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Train, retrain without data, climb the ladder of curvatures, compare with the truth."""
    # Imported here so that --help and a wrong option answer at once.
    from curvfluence.report import with_report
    from curvfluence.report.terminal import WIDTH, show_results, show_study
    from curvfluence.study import StudySpec, load, run_study
    from curvfluence.study.variant import Variant

    chosen = _names(rungs)
    loaded = load(problem)
    spec = StudySpec(
        problem=problem,
        subsets=loaded.subsets if subsets is None else subsets,
        seed=seed,
        models=models,
        alpha=alpha,
        rungs=chosen,
        dtype=dtype,
        protocol=protocol,
        variant=Variant(depth=depth, width=width, epochs=epochs),
        bregman=bregman,
    )
    plain = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        with _watching(no_progress) as watch:
            done = run_study(
                spec,
                out,
                problem=loaded,
                threads=threads,
                rerun=rerun,
                bank=bank,
                wait=wait,
                watch=watch,
            )
            with watch("write the report", 1):
                done = with_report(done)
    except NotKeptError as error:
        show_results(error.results, plain)
        raise
    if done.reused:
        plain.print(
            f"This study is already in {done.path}, made by this code; --rerun computes it again.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    show_study(done, plain)


@app.command()
def sweep(
    problem: ProblemName,
    depth: Annotated[str | None, typer.Option(help="Hidden layers, by comma: 1,2,4.")] = None,
    width: Annotated[str | None, typer.Option(help="Units of every hidden layer: 16,32.")] = None,
    activation: Annotated[str | None, typer.Option(help="gelu, tanh, relu.")] = None,
    bias: Annotated[str | None, typer.Option(help="Whether layers have one: yes,no.")] = None,
    epochs: Annotated[str | None, typer.Option(help="Training lengths: 3,30.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Kept fractions: 0.5,0.9.")] = None,
    weight_decay: Annotated[str | None, typer.Option(help="Weight decays: 0,3e-3.")] = None,
    label_noise: Annotated[
        str | None, typer.Option(help="Shares of flipped labels: 0,0.1.")
    ] = None,
    decay_in_inverse: Annotated[
        str | None, typer.Option(help="Whether the inverse has the weight decay: yes,no.")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds: 0,1,2.")] = None,
    fisher: Annotated[
        str, typer.Option(help="Further Fisher types of K-FAC and EK-FAC, on the same truth.")
    ] = "mc(1)",
    subsets: Annotated[int, typer.Option(help="Random subsets of each study.")] = 30,
    models: Annotated[int, typer.Option(help="Influence models of each study.")] = 2,
    protocol: ProtocolName = "clean",
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/PROBLEM-sweep unless given.")
    ] = None,
    jobs: Jobs = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Study every cell of a grid, in parallel processes, into one tidy table and a page."""
    from curvfluence.report import write_sweep_report
    from curvfluence.report.terminal import WIDTH, show_sweep
    from curvfluence.study import StudySpec
    from curvfluence.study.sweep import run_sweep

    given: dict[str, tuple[str | None, Callable[[str], Value]]] = {
        "depth": (depth, int),
        "width": (width, int),
        "activation": (activation, str.strip),
        "bias": (bias, _yes),
        "epochs": (epochs, int),
        "alpha": (alpha, float),
        "weight_decay": (weight_decay, float),
        "label_noise": (label_noise, float),
        "decay_in_inverse": (decay_in_inverse, _yes),
        "seed": (seed, int),
    }
    axes = {
        name: [_value(part, kind, name) for part in text.split(",")]
        for name, (text, kind) in given.items()
        if text is not None
    }
    if not axes:
        raise InputError("a sweep needs an axis, such as --depth 1,2,4")
    fishers = tuple(name.strip() for name in fisher.split(",") if name.strip())
    base = StudySpec(
        problem, subsets, models=models, protocol=protocol, fishers=fishers, bregman=False
    )
    folder = Path("runs") / f"{Path(problem).stem}-sweep" if out is None else out
    with _watching(no_progress) as watch:
        done = run_sweep(base, axes, folder, jobs=jobs, wait=wait, watch=watch)
        with watch("write the report", 1):
            write_sweep_report(done)
    show_sweep(done, Console(width=None if sys.stdout.isatty() else WIDTH))


@contextmanager
def _watching(no_progress: bool) -> Generator[Watcher]:
    """Progress bars on the terminal, or none."""
    from curvfluence.study.progress import bars, logged, silent

    if no_progress:
        yield logged(silent)
    else:
        with bars(Console(stderr=True)) as watch:
            yield logged(watch)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _yes(text: str) -> bool:
    if text.strip() not in ("yes", "no"):
        raise ValueError(text)
    return text.strip() == "yes"


def _value(text: str, kind: Callable[[str], Value], name: str) -> Value:
    try:
        return kind(text)
    except ValueError:
        what = "yes, no or both by comma" if kind is _yes else "numbers by comma"
        raise InputError(f"--{name.replace('_', '-')} takes {what}; seen {text!r}") from None


@app.command()
def claims(
    problems: Annotated[
        list[str], typer.Argument(help="Built-in problems, or Python files of your own.")
    ],
    protocol: Annotated[
        str | None,
        typer.Option(
            help="table1: the paper's own nets and training lengths, one problem at a time. clean "
            "and paper, both of them, unless given."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="With table1: a part of the cells, verdicts provisional."),
    ] = False,
    depth: Annotated[int | None, typer.Option(help="With table1: cells of that depth.")] = None,
    width: Annotated[int | None, typer.Option(help="With table1: cells of that width.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="With table1: cells trained for so many epochs.")
    ] = None,
    seed: Seed = 0,
    models: Annotated[
        int | None, typer.Option(help="Influence models of each study, 8 (the least) or more.")
    ] = None,
    subsets: SubsetCount = None,
    variant_subsets: Annotated[
        int | None, typer.Option(help="Random subsets of each variant; 40 unless given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/claims or runs/table1 unless given.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the tables there too: FILE.md.")] = None,
    jobs: Jobs = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Test what the paper says: both protocols, across width, depth and training length; or with
    --protocol table1 its own experiment."""
    from curvfluence.report import table1
    from curvfluence.report.claims import markdown, show_claims, write_claims
    from curvfluence.report.terminal import WIDTH
    from curvfluence.study.claims import Settings, run_claims
    from curvfluence.study.claims.table1 import Part
    from curvfluence.study.claims.table1_run import run_table1

    if docs is not None:
        _require_folder(docs)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    part = Part(depth, width, epochs)
    if protocol == "table1":
        fixed = {"models": models, "subsets": subsets, "variant-subsets": variant_subsets}
        given = [f"--{name}" for name, value in fixed.items() if value is not None]
        if given or len(problems) > 1:
            what = " and ".join(given) or "more than one problem"
            raise InputError(f"the cells of table1 are fixed: it does not take {what}")
        folder = out or Path("runs/table1")
        with _watching(no_progress) as watch:
            cells = run_table1(
                problems[0],
                folder,
                quick=quick,
                seed=seed,
                part=part,
                jobs=jobs,
                wait=wait,
                watch=watch,
            )
            with watch("write the report", 1):
                table1.write_table1(cells)
        if docs is not None:
            docs.write_text(table1.markdown(cells.table), encoding="utf-8")
        table1.show_table1(cells, console)
        return
    if protocol is not None or quick or part.given:
        alone = "--quick" if quick else f"--{next(iter(part.given), '')}"
        seen = f"--protocol {protocol}" if protocol is not None else f"{alone} alone"
        raise InputError(f"claims are of clean and paper together, or of table1; seen {seen}")
    models, variant_subsets = models or LEAST_MODELS, variant_subsets or VARIANT_SUBSETS
    if models < LEAST_MODELS:
        raise InputError(f"a claim needs {LEAST_MODELS} influence models or more; seen {models}")
    settings = Settings(seed=seed, models=models, subsets=subsets, variant_subsets=variant_subsets)
    with _watching(no_progress) as watch:
        folder = out or Path("runs/claims")
        done = run_claims(problems, folder, settings, jobs=jobs, wait=wait, watch=watch)
        write_claims(done, watch=watch)
    if docs is not None:
        docs.write_text(markdown(done), encoding="utf-8")
    show_claims(done, console)


@app.command()
def questions(
    problem: ProblemName,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/PROBLEM-questions unless given.")
    ] = None,
    subsets: SubsetCount = None,
    models: Models = 4,
    orders: Orders = 2,
    alpha: Annotated[
        str, typer.Option(help="Kept fractions, by comma, 0.5 among them.")
    ] = "0.5,0.9,0.95,0.99",
    left_out: Annotated[int, typer.Option(help="Examples to leave out one at a time.")] = 100,
    queries: Annotated[int, typer.Option(help="Queries whose most helpful are removed.")] = 20,
    depth: Depth = None,
    width: Width = None,
    epochs: Epochs = None,
    rungs: RungNames = None,
    protocol: ProtocolName = "clean",
    threads: Threads = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Ask one ladder several questions: other fractions kept, one example left out, the most
    helpful ones removed, the spread over retrainings."""
    from curvfluence.report.questions import show_questions, write_questions
    from curvfluence.report.terminal import WIDTH
    from curvfluence.study import StudySpec, load
    from curvfluence.study.questions import QuestionSpec, run_questions
    from curvfluence.study.variant import Variant

    chosen = _names(rungs)
    loaded = load(problem)
    spec = StudySpec(
        problem,
        loaded.subsets if subsets is None else subsets,
        seed=seed,
        models=models,
        orders=orders,
        rungs=chosen,
        protocol=protocol,
        variant=Variant(depth=depth, width=width, epochs=epochs),
        hybrids=False,
        costs=False,
    )
    alphas = tuple(float(_value(part, float, "alpha")) for part in alpha.split(","))
    folder = Path("runs") / f"{loaded.name}-questions" if out is None else out
    asks = QuestionSpec(spec, alphas, left_out=left_out, queries=queries)
    with _watching(no_progress) as watch:
        found = run_questions(asks, folder, problem=loaded, threads=threads, wait=wait, watch=watch)
        with watch("write the report", 1):
            write_questions(found, folder)
    show_questions(found, folder, Console(width=None if sys.stdout.isatty() else WIDTH))


RungName = Annotated[str, typer.Option(help="A rung: EKFAC, or EKFAC[mc(1)] with its Fisher type.")]
DampingName = Annotated[
    str, typer.Option(help="relative(0.1), times the mean eigenvalue, or a number such as 1e-3.")
]


@app.command()
def attribute(
    problem: Annotated[
        str, typer.Argument(help="A Python file that defines `problem`, or a built-in problem.")
    ],
    query: Annotated[
        list[int] | None, typer.Option(help="Number of a query; again for more. All unless given.")
    ] = None,
    top: Annotated[int, typer.Option(help="Examples at either end of a list.")] = 10,
    rung: RungName = "EKFAC",
    damping: DampingName = "relative(0.1)",
    beside: Annotated[
        str,
        typer.Option(
            help="A second rung to compare with; auto: the highest that is forecast to take half "
            "a minute at most; none."
        ),
    ] = "auto",
    out: Annotated[Path, typer.Option(help="The page.")] = Path("explorer.html"),
    table: Annotated[
        Path | None, typer.Option(help="Write the lists as a table too: a new FILE.csv.")
    ] = None,
    threads: Threads = None,
    no_progress: NoProgress = False,
) -> None:
    """Which training examples are behind an answer: a table here, and a page to look at them.

    Of a file nothing is trained again; a built-in problem is trained once.
    """
    from curvfluence.curvature.named import damping_named, rung_named
    from curvfluence.explore import answer, companion
    from curvfluence.report.explorer import show_answers, write_explorer
    from curvfluence.report.parts.page import require_own
    from curvfluence.report.terminal import WIDTH
    from curvfluence.study.problems.given import given

    chosen, at = rung_named(rung), damping_named(damping)
    second = None if beside in ("auto", "none") else rung_named(beside)
    require_own(out)
    _set_threads(threads)
    plain = Console(width=None if sys.stdout.isatty() else WIDTH)
    with _watching(no_progress) as watch, watch("load the problem", 3) as done:
        asked = given(problem)
        done(1)
        why = ""
        if beside == "auto":
            second, why = companion(asked.problem, chosen)
        found = answer(asked, query, rung=chosen, beside=second, damping=at, top=top)
        done(2)
        page = write_explorer(found, out, command=_command())
    show_answers(found, plain)
    if table is not None:
        found.asked.with_ids(queries=found.queries).to_csv(table, top)
        plain.print(f"[bold]Table[/]  {table}", highlight=False, soft_wrap=True)
    if why:
        plain.print(Text(f"beside: {second.name if second else 'nothing'}, {why}", style="dim"))
    plain.print(f"[bold]Page[/]  {page.path}", highlight=False, soft_wrap=True)


@app.command()
def audit(
    problem: Annotated[
        str, typer.Argument(help="A Python file that defines `problem`, or a built-in problem.")
    ],
    rung: RungName = "EKFAC",
    damping: DampingName = "relative(0.1)",
    neighbours: Annotated[int, typer.Option(help="That an example is compared with.")] = 20,
    examined: Annotated[
        int | None,
        typer.Option(
            help="Examples whose neighbours are looked for; all of 5,000 or fewer, else 2,000."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("audit.html"),
    json: Annotated[Path | None, typer.Option(help="Write every number: FILE.json.")] = None,
    threads: Threads = None,
    no_progress: NoProgress = False,
) -> None:
    """Which labels look wrong, which examples harm, which are there twice; beside plain loss."""
    from curvfluence.auditing import audit as run_audit
    from curvfluence.auditing.record import record_of
    from curvfluence.curvature.named import damping_named, rung_named
    from curvfluence.report.audit import show_audit, write_audit
    from curvfluence.report.parts.page import require_own
    from curvfluence.report.terminal import WIDTH
    from curvfluence.store.records import write
    from curvfluence.study.problems.given import given

    chosen, at = rung_named(rung), damping_named(damping)
    require_own(out)
    if json is not None:
        _require_folder(json, "--json")
    _set_threads(threads)
    with _watching(no_progress) as watch, watch("audit", 3) as done:
        asked = given(problem)
        done(1)
        found = run_audit(
            asked.problem,
            chosen,
            damping=at,
            k=neighbours,
            examined=examined,
            flipped=asked.flipped,
        )
        done(2)
        page = write_audit(found, asked, out, command=_command())
    plain = Console(width=None if sys.stdout.isatty() else WIDTH)
    show_audit(found, asked, plain)
    if json is not None:
        write(json, record_of(found, problem))
        plain.print(f"[bold]Numbers[/]  {json}", highlight=False, soft_wrap=True)
    plain.print(f"[bold]Page[/]  {page.path}", highlight=False, soft_wrap=True)


@app.command()
def advise(
    problem: Annotated[
        str, typer.Argument(help="A Python file that defines `problem`, or a built-in problem.")
    ],
    budget: Annotated[str, typer.Option(help="For all queries: 30s, 5m, 2h.")] = "5m",
    by: Annotated[
        str,
        typer.Option(help="What λ is chosen by: relative, halves, surrogate or certificate."),
    ] = "relative",
    queries: Annotated[int, typer.Option(help="Queries that rungs are tried on.")] = 32,
    retrain: Annotated[
        int | None,
        typer.Option(
            help="Retrain on so many random halves of the data, and measure: a file then defines "
            "`recipe` too."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the retrainings; runs/PROBLEM-advise unless given."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    no_progress: NoProgress = False,
) -> None:
    """Which rung and which damping for a budget of time, and what one step more would cost."""
    from curvfluence.advising import advise as ask
    from curvfluence.advising import seconds_of
    from curvfluence.advising.retrained import retrained
    from curvfluence.report.advice import show_advice
    from curvfluence.report.terminal import WIDTH
    from curvfluence.study import load
    from curvfluence.study.problems.given import given

    seconds = seconds_of(budget)
    _set_threads(threads)
    with _watching(no_progress) as watch:
        if retrain is None:
            asked = given(problem)
            title, chosen, truth = asked.title, asked.problem, None
        else:
            study = load(problem)
            folder = Path("runs") / f"{study.name}-advise" if out is None else out
            made = retrained(
                study, retrain, folder / "bank", seed=seed, threads=threads, watch=watch
            )
            title, chosen, truth = study.display.title, made.problem, made.truth
        with watch("try rungs", 1):
            found = ask(chosen, seconds, by=by, queries=queries, truth=truth, seed=seed)
    show_advice(found, title, Console(width=None if sys.stdout.isatty() else WIDTH))


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        from curvfluence import kinds

        torch.set_num_threads(kinds.count(threads, "threads"))


def _command() -> str:
    """As it was typed."""
    return shlex.join(["curvfluence", *sys.argv[1:]])


@app.command()
def judge(
    scores: Annotated[
        list[Path],
        typer.Argument(
            help="A file of scores (.npy, .npz, kronfluence's .safetensors, TRAK's .mmap), of one "
            "influence model or [model, query, train]; or several files, one a model."
        ),
    ],
    problem: Annotated[
        str | None,
        typer.Option(help="What they are of: a built-in problem, or a file; the bank's own."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(help="What a positive score's example does to the query: helps or hurts."),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Of the axes: query,train or train,query.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="loss: the change of the query's measurement. loss*N: N times that. none."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of a file of several.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Number of the influence model, or several by comma; 0, 1, and so on."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the scores are called.")] = "judged",
    against: Annotated[
        str | None,
        typer.Option(help="Rungs to stand beside, by comma; EKFAC, and GGN up to 10,000 weights."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Stand beside random scores, cosine, TracIn and TRAK as well.")
    ] = True,
    removal: Annotated[
        bool,
        typer.Option(
            "--removal",
            help="Leave out the top 1%, 5% and 10% of each method for each of the first queries, "
            "and train again: about 500 times for each influence model.",
        ),
    ] = False,
    queries: Annotated[int, typer.Option(help="Queries of the removal, the first ones.")] = 20,
    seed: Seed = 0,
    subsets: Annotated[
        int | None, typer.Option(help="Random subsets; the bank's number, or the problem's own.")
    ] = None,
    models: Annotated[
        int | None, typer.Option(help="Influence models of the truth; the bank's number, or 4.")
    ] = None,
    orders: Annotated[
        int | None,
        typer.Option(help="Minibatch orders of each subset; the bank's number, or 2."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Fraction of the data that a subset keeps.")] = 0.5,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Folder of retrainings to read and to add to; banks/PROBLEM where it is complete, "
            "or else runs/PROBLEM-judge/bank."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write every number too: FILE.json.")] = None,
    threads: Threads = None,
    no_progress: NoProgress = False,
) -> None:
    """Hold scores that any library made against retraining: LDS, beside our rungs and baselines."""
    from curvfluence.judging import Beside, Removal, Settings
    from curvfluence.judging.run import judge as judged
    from curvfluence.report.judge import show_judgement
    from curvfluence.report.terminal import WIDTH

    numbers = None if model is None else [int(_value(n, int, "model")) for n in model.split(",")]
    wanted = Removal(queries=queries) if removal else None
    with _watching(no_progress) as watch:
        found = judged(
            list(scores),
            problem,
            positive=positive,
            order=order,
            units=units,
            key=key,
            model=numbers,
            name=name,
            beside=Beside(_names(against), baselines=baselines, removal=wanted),
            settings=Settings(subsets, seed, models, orders, alpha),
            bank=bank,
            out=out,
            threads=threads,
            watch=watch,
        )
    show_judgement(found, Console(width=None if sys.stdout.isatty() else WIDTH), out)


@app.command()
def plan(
    problem: ProblemName,
    rungs: RungNames = None,
    queries: Annotated[
        int | None, typer.Option(help="Queries to score; the problem's own number unless given.")
    ] = None,
    dtype: DType = "float32",
) -> None:
    """Forecast what each rung costs here, stage by stage, before anything is fitted."""
    from curvfluence.report.terminal import WIDTH, show_plans
    from curvfluence.study.costs import forecasts

    names = _names(rungs)
    found = forecasts(problem, names, queries=queries, dtype=dtype)
    show_plans(found, Console(width=None if sys.stdout.isatty() else WIDTH))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The new file, such as my_problem.py.")],
) -> None:
    """Write a commented example of a problem of your own, ready to run."""
    from curvfluence.study.problems import write_template

    write_template(path)
    typer.echo(f"{path} is written. It runs as it is: curvfluence study {path}")


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of finished studies, sweeps, claims or questions."),
    ],
    docs: Annotated[
        Path | None, typer.Option(help="Write the tables of claims, one after another: FILE.md.")
    ] = None,
) -> None:
    """Write pages and figures again, from what the folders hold."""
    from curvfluence.report.again import text_of, write_again
    from curvfluence.report.terminal import WIDTH

    plain = Console(width=None if sys.stdout.isatty() else WIDTH)
    if docs is not None:
        _require_folder(docs)
        docs.write_text(text_of(folders), encoding="utf-8")
    for folder in folders:
        if docs is not None and folder.suffix == ".json":
            continue  # a table alone: it is in the text
        plain.print(f"[bold]Report[/]  {write_again(folder)}", highlight=False, soft_wrap=True)


def _require_folder(file: Path, option: str = "--docs") -> None:
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} is no folder: {option} names a file in one that exists")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two finished studies or more.")],
    out: Annotated[Path | None, typer.Option(help="Write a page too: FILE.html.")] = None,
) -> None:
    """Put studies side by side: LDS by rung, and the settings in which they differ."""
    from curvfluence.report import compare_studies, write_comparison
    from curvfluence.report.terminal import WIDTH

    found = compare_studies(folders)
    plain = Console(width=None if sys.stdout.isatty() else max(WIDTH, 30 + 45 * len(folders)))
    if out is not None:
        write_comparison(found, out)
    found.show(plain)
    if out is not None:
        plain.print(f"[bold]Page[/]  {out}", highlight=False, soft_wrap=True)


bank_app = typer.Typer(
    no_args_is_help=True, help="Keep the retrainings of a study, and check what is kept."
)
app.add_typer(bank_app, name="bank")


@bank_app.command("make")
def bank_make(
    problem: ProblemName,
    folder: Annotated[Path, typer.Argument(help="The bank: a new folder, or one to add to.")],
    seed: Seed = 0,
    subsets: SubsetCount = None,
    models: Models = 4,
    orders: Orders = 2,
    alpha: Annotated[str, typer.Option(help="Kept fractions, by comma: 0.5,0.9.")] = "0.5",
    depth: Depth = None,
    width: Width = None,
    epochs: Epochs = None,
    protocol: ProtocolName = "clean",
    threads: Threads = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Train the influence models of a study and retrain on its subsets: its truth, without its
    ladder. What the bank holds already is not trained again."""
    from curvfluence.banks import make_bank, verify_bank
    from curvfluence.study import StudySpec, load
    from curvfluence.study.variant import Variant

    loaded = load(problem)
    specs = [
        StudySpec(
            problem,
            loaded.subsets if subsets is None else subsets,
            seed=seed,
            models=models,
            orders=orders,
            alpha=float(_value(part, float, "alpha")),
            protocol=protocol,
            variant=Variant(depth=depth, width=width, epochs=epochs),
        )
        for part in alpha.split(",")
    ]
    with _watching(no_progress) as watch:
        make_bank(specs, folder, problem=loaded, threads=threads, wait=wait, watch=watch)
    found = verify_bank(folder)
    typer.echo(f"{folder} holds {found.retrainings:,} retrainings in {found.batches} batches")


@bank_app.command("verify")
def bank_verify(
    folder: Annotated[Path, typer.Argument(help="A bank.")],
    again: Annotated[int, typer.Option(help="How many of its retrainings to train once more.")] = 0,
) -> None:
    """Read every number of a bank against its SHA-256, and train some of its runs once more."""
    from curvfluence.banks import verify_bank

    found = verify_bank(folder, again=again)
    text = f"{found.retrainings:,} retrainings in {found.batches} batches are as they were written"
    if found.again:
        text += f"; {found.equal} of {found.again} trained once more are equal to the bit"
    if found.equal < found.again:
        text += f", the others within {found.largest:.2g} of their query's spread over subsets"
    typer.echo(text)


runs_app = typer.Typer(no_args_is_help=True, help="Look after folders of results.")
app.add_typer(runs_app, name="runs")
Root = Annotated[Path, typer.Argument(help="A folder of results, or of such folders.")]


@runs_app.command("list")
def runs_list(root: Root = Path("runs")) -> None:
    """Every folder of results: what it is, whether it is finished, how large."""
    from curvfluence.report.runs import runs_table
    from curvfluence.report.terminal import WIDTH
    from curvfluence.runs import find

    plain = Console(width=None if sys.stdout.isatty() else WIDTH)
    runs_table(find(root), root).show(plain)


@runs_app.command("show")
def runs_show(folder: Root) -> None:
    """What a folder holds: its settings, its files, and which code made them."""
    from curvfluence.report.runs import show_run
    from curvfluence.report.terminal import WIDTH

    show_run(folder, Console(width=None if sys.stdout.isatty() else WIDTH))


@runs_app.command("verify")
def runs_verify(
    folders: Annotated[list[Path], typer.Argument(help="Folders of results.")],
) -> None:
    """Read every file that results rest on against its SHA-256; exit code 1 where one is not what
    was written."""
    from curvfluence.runs import verify

    plain = Console(soft_wrap=True)
    checked = [one for folder in folders for one in verify(folder)]
    for one in checked:
        mark = Text("whole", style="green") if one.fault is None else Text("FAULT", style="red")
        said = f"  {one.kind:9} {one.path}" + ("" if one.fault is None else f": {one.fault}")
        plain.print(mark + said, highlight=False)
    wrong = sum(one.fault is not None for one in checked)
    plain.print(f"{len(checked) - wrong} of {len(checked)} are whole", highlight=False)
    if wrong:
        sys.exit(1)


@runs_app.command("clean")
def runs_clean(
    root: Root = Path("runs"),
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Remove folders that are not finished, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it only list.")] = False,
) -> None:
    """List, and with --yes remove, what commands that were killed have left behind. What a command
    is writing to now is not touched."""
    from curvfluence.runs import clean, leftovers

    plain = Console(soft_wrap=True)
    found = (clean if yes else leftovers)(root, unfinished=unfinished)
    for path in found:
        plain.print(str(path), highlight=False, markup=False)
    done = "removed" if yes else "would be removed by --yes"
    plain.print(f"{len(found)} {done}", highlight=False)


def _shown(otherwise: Callable[..., None], message: Warning | str, *about: Any) -> None:
    """A warning of ours as a sentence, without the place in the source that it comes from."""
    if isinstance(message, CurvfluenceWarning):
        Console(stderr=True).print(Text(f"warning: {message}", style="yellow"))
    else:
        otherwise(message, *about)


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM: nothing below turns it into something else, as frameworks do with
    KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _stoppable() -> Generator[None]:
    """Ctrl-C and SIGTERM end what is inside; handlers are as before afterwards."""

    def stop(number: int, _: object) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """The command line in this process: a request that cannot be carried out ends with its reason
    and exit code 2, Ctrl-C with 130, SIGTERM with 143."""
    with warnings.catch_warnings(), _stoppable():
        warnings.showwarning = partial(_shown, warnings.showwarning)
        _run()


def _refuse(kind: str, text: str) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold red]{kind}:[/] ", end="")
    console.print(text, highlight=False, markup=False)
    sys.exit(2)


def _run() -> None:
    try:
        app()
    except CurvfluenceError as error:
        _refuse("error" if isinstance(error, InputError) else type(error).__name__, str(error))
    except (MemoryError, RuntimeError) as error:
        from curvfluence.runtime.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
        _refuse(
            "error",
            f"memory is short{f': {asked[1]} could not be had' if asked else ''}. What is finished "
            "is kept, and the same command goes on: take a rung that needs less "
            "(`curvfluence advise` forecasts them), --jobs 1, or a larger limit",
        )
    except _Stopped as stopped:
        if not is_child():  # the supervisor says so
            Console(stderr=True).print(
                "stopped: what is finished is kept, whole; the same command goes on from there"
            )
        sys.exit(128 + stopped.number)
