"""`goldfinch evaluate`: benchmarks of lm-evaluation-harness, or the loss of plain text."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse, require_model, require_path
from goldfinch.cli.contexts import Device, Dtype, Rope, load_folder
from goldfinch.cli.tables import print_json
from goldfinch.cli.terminal import shown
from goldfinch.cli.text_files import TextFileOptions
from goldfinch.cli.units import plural
from goldfinch.devices import check_device_name, check_dtype_name
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.evaluation.benchmarks import Evaluation
    from goldfinch.evaluation.text import TextEvaluation

DEFAULT_WINDOW = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model: goldfinch evaluate runs/quickstart --tasks hellaswag,lambada_openai -o results

    With --tasks, lm-evaluation-harness asks and GoldFinch's engine answers (pip install 'goldfinch[eval]'): few-shot
    examples and contexts with several continuations are read once. Everything that lm-eval writes is kept, and the
    paper's results stand beside ours. moby_dick_cloze and moby_dick_endings need no network; for the data of other
    tasks, see --data and docs/evaluation.md. torchrun shares the documents among several processes.

    With files and without --tasks: nats per token, bits per byte and perplexity of their text, with all of it as
    context and in windows, and the loss by position.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """Model folder, from `goldfinch train` or `goldfinch convert`, or hf:OWNER/NAME, one on the Hub."""
    files: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...")]] = ()
    """Text files to predict, as for `goldfinch read`."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("results")
    """Output folder."""
    tasks: tuple[str, ...] = ()
    """Names of lm-eval's tasks, groups or tags, separated by commas or spaces."""
    data: Path | None = None
    """Folder of local data, for machines without a network: TASK/SPLIT.jsonl for each task, such as
    hellaswag/validation.jsonl."""
    limit: int | None = None
    """Maximum number of documents of each task."""
    num_fewshot: int | None = None
    """Examples before each question; by default what the task says."""
    apply_chat_template: bool = False
    """Write prompts as conversations, in the model's chat format."""
    use_cache: Path | None = None
    """SQLite file of finished answers: after an interruption, the same command continues."""
    batch_size: int | None = None
    """Maximum number of texts in a batch; by default as many as is fast. Results do not depend on it."""
    max_length: int | None = None
    """Cut contexts of tasks to this many tokens, as for models of limited context."""
    latents: Literal["float32", "bfloat16", "float16", "int8", "int4", "model"] = "model"
    """How compressed keys are stored while tasks are evaluated. model: the dtype of the weights, unrounded."""
    windows: tuple[int, ...] = ()
    """Lengths of windows in which files are read for comparison; by default the sequence length of the training, or
    1024."""
    text: Annotated[TextFileOptions, tyro.conf.arg(name="")] = TextFileOptions()
    """Which files are read, and how."""
    dtype: Dtype = "auto"
    """Weight dtype: float32, bfloat16 or float16; auto: bfloat16 where the processor or GPU multiplies it natively,
    else float32."""
    device: Device = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""
    rope: Rope = None
    """Rotary positions in place of the model's, as for `goldfinch ask`."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> None:
        """Evaluate, write the report and print its table.

        Raises:
            UserError: neither tasks nor files, or both; a number is out of range; a task, data or a file is missing.
        """
        names = [name for word in self.tasks for name in word.split(",") if name]
        if bool(names) == bool(self.files):
            raise UserError("name either text files or --tasks, such as --tasks moby_dick_cloze,moby_dick_endings")
        for name in ("limit", "batch_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if min(self.windows, default=1) < 1 or (self.num_fewshot or 0) < 0:
            raise UserError("--windows must be at least 1, and --num-fewshot must not be negative")
        require_model(self.model)
        check_dtype_name(self.dtype)
        check_device_name(self.device)
        if self.data is not None:
            require_path(self.data)
        if names:
            self._run_tasks(names)
        else:
            self._run_text()

    def _run_tasks(self, names: list[str]) -> None:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval draws bars wherever it writes to
        try:
            from goldfinch.evaluation.benchmarks import TABLE, TaskSettings, evaluate_tasks
            from goldfinch.evaluation.harness import GoldFinchLM
        except ModuleNotFoundError as error:
            raise UserError(f"lm-eval is not installed ({error}): pip install 'goldfinch[eval]'") from error
        from goldfinch.training.parallel.processes import join_processes

        settings = TaskSettings(
            tasks=tuple(names),
            data=self.data,
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            use_cache=self.use_cache,
        )
        with join_processes() as processes:
            with processes.fail_together():
                lm = GoldFinchLM(
                    load_folder(self.model, self.dtype, str(processes.device(self.device)), self.rope),
                    batch_size=self.batch_size,
                    max_length=self.max_length,
                    latents=None if self.latents == "model" else self.latents,
                    processes=processes,
                )
            with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints remarks
                evaluation = evaluate_tasks(lm, settings, self.output, processes)
        if evaluation is not None:
            self._print_tasks(evaluation, self.output / TABLE)

    def _print_tasks(self, evaluation: "Evaluation", table: Path) -> None:
        if self.json:
            print_json(evaluation.results)
            return
        from goldfinch.experiments.markdown import markdown_table

        print(markdown_table(evaluation.headings, evaluation.rows, words=2))
        print(f"\n{evaluation.counts.summary()}\nreport: {table}, with all that lm-eval wrote beside it")

    def _run_text(self) -> None:
        from goldfinch.cli.progress import ReadingDisplay, SkippedDocuments, errors_console
        from goldfinch.data.chat_template import ChatTemplate
        from goldfinch.data.documents import STANDARD_INPUT, input_bytes, read_documents
        from goldfinch.evaluation.text import evaluate_text, write_text_report
        from goldfinch.training.run.folder import trained_length

        errors = errors_console()
        found = self.text.find(self.files, errors)
        folder = require_model(self.model)
        lm = load_folder(folder, self.dtype, self.device, self.rope)
        known_length = trained_length(folder)
        skipped = SkippedDocuments(errors)
        template = ChatTemplate.load(folder) or ChatTemplate()
        documents = read_documents(found.paths, self.text.text_field, skipped, found.encodings, template)
        total = None if STANDARD_INPUT in found.paths else input_bytes(found.paths)
        windows = tuple(dict.fromkeys(self.windows)) or (known_length or DEFAULT_WINDOW,)
        with ReadingDisplay(total) as display:
            evaluation = evaluate_text(lm, documents, windows, display.advance)
        skipped.finish()
        if evaluation is None:
            raise UserError(f"no documents found in {', '.join(self.files)}")
        write_text_report(evaluation, repr(lm), self.files, self.output, known_length)
        self._print_text(evaluation)

    def _print_text(self, evaluation: "TextEvaluation") -> None:
        from goldfinch.evaluation.text import DATA, HEADINGS, PLOT
        from goldfinch.experiments.markdown import markdown_table

        if self.json:
            from goldfinch.json_yaml import read_json

            print_json(read_json(self.output / DATA))
            return
        print(f"{plural(evaluation.num_documents, 'document')}, {plural(evaluation.num_tokens, 'token')}\n")
        print(markdown_table(HEADINGS, (loss.row for loss in evaluation.losses)))
        print(f"\nreport: {shown(str(self.output))}, with {PLOT}")


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Evaluate, "evaluate", args).run()
