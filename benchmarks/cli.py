"""The commands `unigate bench …`. Thin: options become a plan, the plan is run, the report is shown.

Exit codes: 0 done and valid; 1 done and INVALID, or it could not be done; 2 the command line cannot be used; 130
interrupted, and resumable.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.errors import BenchmarkError
from benchmarks.plan import ARRIVALS, FORMATS, TURNS, build_plan, read_scenario, scenario_names
from benchmarks.progress import Progress
from benchmarks.report.writing import Report, write_report
from benchmarks.stepping import Interrupted, execute, go_on

PROBLEMS = 1
UNUSABLE = 2
INTERRUPTED = 130
PIPED_WIDTH = 200

cli = typer.Typer(help="Measure an OpenAI-compatible server.", no_args_is_help=True, rich_markup_mode=None)


@cli.command(short_help="Put load on a server and measure it.")
def run(
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Where it listens: http://127.0.0.1:8080/v1")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="The model to ask for.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder for all that comes of it.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with an interrupted run; no other option.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario", metavar="NAME", help=f"Options by a name ({', '.join(scenario_names())}) or TOML file."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="D", help="synthetic, a file, or a name in --dataset-dir. [default: synthetic]"
        ),
    ] = None,
    dataset_format: Annotated[
        str | None,
        typer.Option("--dataset-format", metavar="F", help=f"{', '.join(FORMATS)}; else told from the file."),
    ] = None,
    dataset_dir: Annotated[
        str | None,
        typer.Option("--dataset-dir", metavar="DIR", help="A folder with LLaMA-Factory's dataset_info.json."),
    ] = None,
    turns: Annotated[
        str | None, typer.Option("--turns", metavar="T", help=f"What of a conversation is asked: {', '.join(TURNS)}.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="PATH", help="The model's folder or tokenizer.json.")
    ] = None,
    input_tokens: Annotated[int | None, typer.Option(help="Synthetic: length of a prompt. [default: 256]")] = None,
    input_spread: Annotated[
        float | None, typer.Option(help="Synthetic: by what part lengths vary. [default: 0]")
    ] = None,
    prefix_tokens: Annotated[
        int | None, typer.Option(help="Synthetic: beginning all prompts share. [default: 0]")
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer. [default: 128]")] = None,
    output_spread: Annotated[
        float | None, typer.Option(help="Synthetic: by what part that varies. [default: 0]")
    ] = None,
    ignore_eos: Annotated[
        bool | None, typer.Option("--ignore-eos/--no-ignore-eos", help="Force the length (vLLM, LMDeploy, llama.cpp).")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="How many conversations.")] = None,
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="With a rate: instead of --num-prompts; of a sweep, each step."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, whatever the server does.")
    ] = None,
    ramp_to: Annotated[float | None, typer.Option(help="Open loop: the rate goes from --rate to this one.")] = None,
    arrivals: Annotated[str | None, typer.Option(help=f"{', '.join(ARRIVALS)}. [default: poisson]")] = None,
    burstiness: Annotated[float | None, typer.Option(help="Of gamma arrivals: below 1 bursts, above evens.")] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Arrivals per line: seconds, or Mooncake's JSON.")
    ] = None,
    trace_speed: Annotated[float | None, typer.Option(help="How many times as fast. [default: 1]")] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(help="Open loop: hold requests back above this. [default: none]")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many at once, the next when one ends.")
    ] = None,
    ramp: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Closed loop: begin them over this long.")
    ] = None,
    think: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Between an answer and the next question.")
    ] = None,
    sweep: Annotated[bool | None, typer.Option("--sweep", help="Open loop at rising rates until it saturates.")] = None,
    rates: Annotated[str | None, typer.Option(metavar="R,R,…", help="Open loop at each of these rates.")] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Unmeasured requests before. [default: 10, 2 x concurrency]")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="chat or completions. [default: chat]")] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Ask for streams. [default: stream]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="[default: 0]")] = None,
    extra_body: Annotated[str | None, typer.Option(metavar="JSON", help="Added to every request.")] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:MS", help="A good request keeps ttft:MS, tpot:MS, e2el:MS; repeat."),
    ] = None,
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Where metrics are; repeat. [default: /metrics of the server]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts and arrivals. [default: 0]")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="For a whole answer. [default: 600]")] = None,
    idle_timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="For silence. [default: 120]")] = None,
    connect_timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="To connect. [default: 10]")] = None,
    keep_text: Annotated[bool | None, typer.Option("--keep-text/--no-text", help="Keep the answers' texts.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable that holds the key. [default: OPENAI_API_KEY]")
    ] = None,
    ca_file: Annotated[str | None, typer.Option(metavar="FILE", help="Certificates to trust.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Do not check the server's certificate.")] = None,
    label: Annotated[str | None, typer.Option(help="What to call the run in its report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Put load on any OpenAI-compatible server and measure it.

    Everything is written to --out as it happens: requests.jsonl (a row per request), journal.jsonl; at the end
    summary.json, report.md and report.html. Ctrl-C keeps what there is.
    """
    given = {
        "base_url": base_url, "model": model, "dataset": dataset, "dataset_format": dataset_format,
        "dataset_dir": dataset_dir, "turns": turns, "tokenizer": tokenizer, "input_tokens": input_tokens,
        "input_spread": input_spread, "prefix_tokens": prefix_tokens, "output_tokens": output_tokens,
        "output_spread": output_spread, "ignore_eos": ignore_eos, "num_prompts": num_prompts, "duration_s": duration,
        "rate": rate, "ramp_to": ramp_to, "arrivals": arrivals or ("trace" if trace else None),
        "burstiness": burstiness,
        "trace": trace, "trace_speed": trace_speed, "max_in_flight": max_in_flight, "concurrency": concurrency,
        "ramp_s": ramp, "think_s": think, "sweep": sweep, "warm_up": warm_up, "endpoint": endpoint, "stream": stream,
        "temperature": temperature, "metrics_url": metrics_url, "seed": seed, "timeout_s": timeout,
        "idle_timeout_s": idle_timeout, "connect_timeout_s": connect_timeout, "keep_text": keep_text,
        "api_key_env": api_key_env, "ca_file": ca_file, "insecure": insecure, "label": label,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None and value != []}
    folder = resume or out
    try:
        if resume is not None and (chosen or out is not None or scenario is not None):
            raise BenchmarkError("--resume DIR goes on with what is in DIR; it takes no other option")
        if folder is None:
            raise BenchmarkError("--out: missing; name a new folder for what comes of the run")
        chosen |= _written(extra_body, goodput, rates)
        plan = None if resume else build_plan(_scenario(scenario, chosen), chosen)
    except BenchmarkError as problem:
        _fail(str(problem), UNUSABLE)
    try:
        with Progress(_stderr()) as progress:
            if plan is None:
                go_on(folder, progress.show, _say)
            else:
                execute(plan, folder, progress.show, _say)
    except BenchmarkError as problem:
        _fail(str(problem))
    except (Interrupted, KeyboardInterrupt):
        _say(
            f"interrupted; everything until now is in {folder}. Go on with: unigate bench run --resume {folder}; "
            f"see it as it is with: unigate bench report {folder}"
        )
        raise typer.Exit(INTERRUPTED) from None
    _show(folder, as_json)


def _scenario(name: str | None, chosen: dict[str, Any]) -> dict[str, Any]:
    """The options of a scenario; its own load gives way to one that was chosen."""
    if name is None:
        return {}
    options = read_scenario(name)
    loads = ("rate", "concurrency", "sweep", "rates", "arrivals", "ramp_to", "burstiness", "trace")
    if any(load in chosen for load in loads[:4]):
        kept = ("arrivals", "burstiness") if "concurrency" not in chosen else ()
        options = {key: value for key, value in options.items() if key not in loads or key in kept}
    if "num_prompts" in chosen:
        options.pop("duration_s", None)
    return options


def _written(extra_body: str | None, goodput: list[str] | None, rates: str | None) -> dict[str, Any]:
    """The options that are written in a form of their own. Raises BenchmarkError."""
    found: dict[str, Any] = {}
    if extra_body is not None:
        try:
            found["extra_body"] = json.loads(extra_body)
        except ValueError as problem:
            raise BenchmarkError(f"--extra-body: not JSON: {problem}") from problem
    if goodput:
        pairs = [item.partition(":") for item in goodput]
        try:
            found["goodput"] = {name: float(limit) for name, _, limit in pairs}
        except ValueError as problem:
            raise BenchmarkError(f"--goodput {' '.join(goodput)}: write it as ttft:200, in milliseconds") from problem
    if rates is not None:
        try:
            found["rates"] = [float(item) for item in rates.split(",")]
        except ValueError as problem:
            raise BenchmarkError(f"--rates {rates}: write them as 1,2,4") from problem
    return found


@cli.command(short_help="Make the reports of a run anew from its raw files.")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make summary.json, report.md and report.html anew from the raw files of a run."""
    _show(folder, as_json)


def _show(folder: Path, as_json: bool) -> None:
    try:
        made: Report = write_report(folder)
    except BenchmarkError as problem:
        _fail(str(problem))
    console = Console(highlight=False, width=None if _stdout_is_terminal() else PIPED_WIDTH)
    if as_json:
        console.print_json(json.dumps(made.summary))
    else:
        console.print(made.shown)
        console.print(f"\n{made.files[-1]}", style="dim", markup=False)
    if not made.is_valid:
        raise typer.Exit(PROBLEMS)


def _stdout_is_terminal() -> bool:
    return Console().is_terminal


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    _stderr().print(f"[bold]-->[/] {escape(text)}")


def _fail(message: str, code: int = PROBLEMS) -> NoReturn:
    _stderr().print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)
