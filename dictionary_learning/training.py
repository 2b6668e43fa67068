"""The training loop."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from dictionary_learning._best import Best, criterion
from dictionary_learning._border import checked
from dictionary_learning._disk import settled, shown
from dictionary_learning._estimate import check_room, estimate_run
from dictionary_learning._hardware import as_device, keep_freed_memory, peak_memory
from dictionary_learning._held_out import Evaluation
from dictionary_learning._held_out_data import Place, held_out_data
from dictionary_learning._lazy import lazy_names
from dictionary_learning._plain import as_bytes, counted, to_plain
from dictionary_learning._provenance import RunRecord, contents_of
from dictionary_learning._resume import RunCheckpoints, all_trainers, describe_run
from dictionary_learning._run_folder import claim_run_folder, remove_run
from dictionary_learning._run_output import RunOutput, check_accumulation, figures_of, plan_of
from dictionary_learning._run_setup import TrainingJob, placement_of, seeds_to_draw, training_jobs
from dictionary_learning._saving import check_finite, check_trained, exported
from dictionary_learning._stop_request import StopRequest
from dictionary_learning._training_step import train_step
from dictionary_learning._types import ConfigLike
from dictionary_learning.activations._normalizers import restored_normalizers
from dictionary_learning.activations._spread import SpreadStream, Stream
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import EvaluationConfig
from dictionary_learning.interop import FORMATS
from dictionary_learning.loggers import (
    ConsoleLogger,
    JSONLLogger,
    LoggerGroup,
    MetricLogger,
    WandbLogger,
)
from dictionary_learning.parallel import (
    PlacementName,
    Ranks,
    TracedElsewhere,
    TracedHere,
    on_first,
    only_first_talks,
    start,
    traced_apart,
)

logger = logging.getLogger(__name__)

_OLD = {"get_norm_factor": "_functions", "log_stats": "_gone", "new_wandb_process": "_gone"}
# `compat` imports this module, so its names are looked up when they are used
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"dictionary_learning.compat.{module}" for name, module in _OLD.items()}
)


@checked()
def trainSAE(
    data: Any,
    trainer_configs: ConfigLike | Iterable[ConfigLike],
    steps: int,
    use_wandb: bool = False,
    wandb_entity: str = "",
    wandb_project: str = "",
    save_steps: Iterable[int] | None = None,
    save_dir: str | os.PathLike[str] | None = None,
    log_steps: int | None = None,
    activations_split_by_head: bool = False,
    transcoder: bool = False,
    run_cfg: Mapping[str, Any] | None = None,
    normalize_activations: bool | str = False,
    verbose: bool = False,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype = torch.float32,
    backup_steps: int | None = None,
    *,
    loggers: Sequence[MetricLogger] = (),
    progress: bool = True,
    overwrite: bool = False,
    checkpoint_steps: int | None = None,
    keep_checkpoints: int = 2,
    resume: str | os.PathLike[str] = "never",
    allow_changed: Iterable[str] = (),
    on_anomaly: Literal["skip", "stop", "rollback"] = "skip",
    patience: int | None = None,
    seed: int | None = None,
    evaluate_every: int | None = None,
    evaluation_data: Any = None,
    evaluation: EvaluationConfig | None = None,
    save_best: str | Mapping[str, str] | None = None,
    placement: PlacementName = "auto",
    latent_ranks: int | None = None,
    tracing_ranks: int | None = None,
    save_format: str = "own",
) -> list[Dictionary]:
    """Trains several dictionaries on one stream of activations.

    A config is typed (`TrainerTopK.Config(k=32)`) or a dictionary (`{"trainer": TrainerTopK, "k":
    32}`, where the trainer may also be named: "top_k"). Width, steps and device are filled in. With
    several sites in the data, a config that names no site is trained on each of them; with a wiring
    that predicts one site from another, on each module whose input and output are there; and with a
    wiring that reads several sites, on all of them together.

    Args:
        data: An `ActivationBuffer`, or any iterable of tensors (batch, activation_dim) or of
            mappings from sites to such tensors.
        trainer_configs: A config or several. They are not changed.
        steps: Batches to train on. Data that ends earlier ends the run, with a warning.
        use_wandb: Whether to log to Weights & Biases, with a run for each dictionary, in the
            project `wandb_project` of the user or team `wandb_entity`.
        save_steps: Steps after which the dictionaries are also saved, under `checkpoints/step_N`.
        save_dir: Where to save the dictionaries, as `trainer_0`, `trainer_1`, ..., and
            `metrics.jsonl`. What cannot be written there at the end is saved beside it, or in the
            system's temporary folder, with a warning.
        log_steps: Steps between two logs; by default 100 logs per run. Logging changes no result.
        activations_split_by_head: Whether each attention head gets latents of its own (wiring
            heads): for data (batch, heads, dim), or a site as wide as all heads together.
        transcoder: Whether configs that name no wiring are transcoders, from inputs to outputs.
        run_cfg: What else to store in the saved configs, under "run".
        normalize_activations: Normalization for configs that choose none: a name of
            `NORMALIZATIONS`, or True for unit mean square. False leaves autoencoders as they are,
            and normalizes where sites of different scale meet. Exported dictionaries take the
            model's activations.
        verbose: Whether to log through `logging` too.
        device: Where to train; the accelerator if there is one.
        autocast_dtype: Type of the model's products in steps whose `loss_fn` is ce or kl, and of a
            user's class; float32 for no autocast. The methods here choose the type of each product
            by themselves: bfloat16 where that is fast and changes no result.
        backup_steps: Another name of `checkpoint_steps`, which writes `checkpoints/latest` of each
            dictionary too.
        progress: Whether the console shows the run.
        overwrite: Whether a run that `save_dir` holds is removed when training starts; it is
            refused otherwise.
        checkpoint_steps: Steps between two checkpoints of the whole run, from which it can be
            resumed to the same bits. One is also written when SIGTERM or Ctrl-C stops the run. With
            `grad_acc_steps`, a checkpoint is written after the next whole step of every dictionary.
        keep_checkpoints: Checkpoints that stay: the newest ones, and those of `save_steps`.
        resume: "auto" goes on from the newest checkpoint in `save_dir`, or starts where there is
            none; a path goes on from that run or checkpoint; "never" starts.
        allow_changed: Settings that may differ from those of the checkpoint, such as "steps".
        on_anomaly: What follows on tokens, gradients or losses that are not finite, and on a loss
            above a config's `max_loss_ratio`. "skip" leaves out such tokens and steps, and warns;
            "stop" also ends the run; "rollback" returns to the newest checkpoint and trains on the
            data after it, three times at most.
        patience: Logs without a better FVU (by 1 %) of any dictionary, after which the run ends.
        seed: Seed of everything random: of the configs that have the default one or none, and of
            the order of an `ActivationBuffer` or `ActivationCache`, of which nothing was read yet.
        evaluate_every: Steps between two evaluations on `evaluation_data`, which change no bit of
            the dictionaries. A failure costs a warning. They are logged as "eval/fvu" and so on.
        evaluation_data: Text that nothing is trained on, for the model of `data`; a `ContextStream`
            of it, where `data` has no model; or activations.
        evaluation: How much of it; contexts are by default as long as those of `data`.
        save_best: A metric, as "fvu", or one with its better side, as {"l0": "lower"}: the best
            dictionary so far is kept as `trainer_N/best`.
        placement: What is spread over the processes that `torchrun` has started. All get the same
            arguments; text is divided among them, and a step has the tokens of all. "data": each
            has every dictionary. "dictionary": each has some, and activations are exchanged.
            "latent": each has a slice of the latents of every dictionary, for those that no device
            can hold. "auto": what takes the least time and fits (docs/devices.md).
        latent_ranks: With "latent", how many processes share the latents of a dictionary; others
            have other tokens. By default all of them share.
        tracing_ranks: How many processes, the last ones, only run the language model, and send its
            activations to the others ahead. Then `data` is best a function that returns an
            `ActivationBuffer`: processes that train do not call it, and load no model.
        save_format: The format of the dictionaries in `save_dir`, as a name of `interop.FORMATS`
            that is written. "dictionary_learning" writes `ae.pt`, `config.json` and
            `checkpoints/ae_<step>.pt`.

    Returns:
        The trained dictionaries, in the order of the configs and, for each, of the sites; an empty
        list on processes that only trace.

    Raises:
        ConfigError: A config or an argument cannot be used, or does not fit the data or the run
            that is resumed.
        CheckpointError: No checkpoint can be read.
        DataError: The data holds no finite activations.
        DivergenceError: Training diverged, no dictionary made a step for 100 steps, or `on_anomaly`
            ended the run. Dictionaries that are finite are saved, and are in its `dictionaries`.
        Interrupted: A signal, or a KeyboardInterrupt in a step, stopped the run, which can be
            resumed.
        RankError: Another process has ended, or does not answer.
    """
    world = start()
    plan = plan_of(
        steps, log_steps, checkpoint_steps, backup_steps, save_steps, on_anomaly, patience, evaluate_every, save_best,
        save_format,
    )  # fmt: skip
    if evaluate_every is None and (evaluation_data is not None or evaluation is not None):
        given = "evaluation_data" if evaluation_data is not None else "evaluation"
        raise ConfigError(f"Got {given} without evaluate_every. Give the number of steps between two evaluations.")
    device = as_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    run_cfg = None if run_cfg is None else to_plain(run_cfg, "run_cfg")
    if not all(isinstance(each, MetricLogger) for each in loggers):
        raise ConfigError(f"Got loggers={loggers!r}; give a list of objects that have `log` and `close`.")
    if activations_split_by_head and transcoder:
        raise ConfigError("Got transcoder=True with activations_split_by_head=True, which are two wirings. Give one.")
    wiring = "heads" if activations_split_by_head else "transcoder" if transcoder else None
    if overwrite and resume != "never":
        raise ConfigError(
            f"Got overwrite=True with resume={resume!r}: it would remove what is resumed. Give one of them."
        )
    if save_dir is None and (plan.saves or resume != "never"):
        raise ConfigError(
            "save_steps, checkpoint_steps, backup_steps, save_best and resume need a folder: give save_dir."
        )
    save_dir = None if save_dir is None else settled(save_dir)
    if tracing_ranks is not None:
        data = traced_apart(data, tracing_ranks, world)
    if isinstance(data, TracedHere):
        with only_first_talks(world), StopRequest(save_dir is not None) as stop:
            data.serve(stop)
        return []
    with contextlib.ExitStack() as stack:
        if isinstance(data, TracedElsewhere):
            world, data.device = stack.enter_context(data), device
        stack.enter_context(only_first_talks(world))
        checkpoints = resumed = None
        if save_dir is not None:
            checkpoints = RunCheckpoints(save_dir, keep_checkpoints, plan.save_steps, world)
            # what cannot become the folder of this run is refused before anything is computed
            claim = claim_run_folder(save_dir, keep=overwrite or checkpoints.is_own(resume))
            on_first(world, lambda: stack.enter_context(claim))
            stack.enter_context(checkpoints)
            resumed = None if resume == "never" else checkpoints.newest(resume)
        if seed is not None and hasattr(data, "reseed"):
            data.reseed(seed)
        n_shares = data.n_shares if isinstance(data, TracedElsewhere) else world.size
        n_shares = n_shares if resumed is None else resumed.n_shares
        stream = _stream(data, world, n_shares, activations_split_by_head)
        placed = placement_of(placement, world, trainer_configs, stream, wiring, device, latent_ranks)
        if isinstance(stream, SpreadStream):
            stream.placement = placed
        stream.expect(plan.steps)
        fitted = None if resumed is None else restored_normalizers(resumed.normalizers)
        drawn = seeds_to_draw() if resumed is None else resumed.seeds
        jobs = training_jobs(
            trainer_configs, stream, plan.steps, device, normalize_activations, wiring, fitted, seed, placed, drawn
        )
        _warn_of_idle_autocast(jobs, autocast_dtype)
        for job in jobs:
            FORMATS[save_format].check(job.trainer.dictionary)
        names, settings = all_trainers(jobs, placed)
        facts = {"steps": plan.steps, "autocast_dtype": str(autocast_dtype)}
        facts |= {"on_anomaly": plan.on_anomaly, "patience": plan.patience}
        facts["contents"] = {} if checkpoints is None else contents_of(data)
        # also without a checkpoint: what could not be saved at the end is refused now
        run = {} if checkpoints is None else describe_run(names, settings, stream, facts)
        if checkpoints is not None and plan.checkpoint_steps:
            check_accumulation([config.get("grad_acc_steps", 1) for config in settings], plan)
        # what cannot be evaluated on is refused now, too
        held_out = best_by = None
        places = placed.of_all((job.number, Place.of(job)) for job in jobs)
        if evaluate_every is not None:
            held_out = on_first(world, lambda: held_out_data(evaluation_data, evaluation, places, data, stream.widths))
        if save_best is not None:
            best_by = on_first(world, lambda: criterion(save_best, held_out is not None and held_out.has_predictions))
        if resumed is not None:
            resumed.check(run, allow_changed)
            resumed.load(jobs, stream)
            stream.expect(plan.steps - resumed.step)
        folder = None if checkpoints is None else checkpoints.folder
        if folder is not None:
            need = estimate_run(plan, jobs, data, keep_checkpoints)
            on_first(world, lambda: check_room(need, folder))
        if folder is not None and overwrite:
            sources = [source for config in settings if (source := config.get("finetune"))]
            on_first(world, lambda: remove_run(folder, sources))
        step, n_tokens = (0, 0) if resumed is None else (resumed.step, resumed.n_tokens)
        sinks: list[MetricLogger] = list(loggers) if world.is_first else []
        if folder is not None and world.is_first:
            sinks.append(JSONLLogger(folder / "metrics.jsonl"))
        if use_wandb and world.is_first:
            ids = None if resumed is None else resumed.loggers.get("WandbLogger 1", {}).get("ids")
            configs = dict(zip(names, settings, strict=True))
            # before those of the caller, among which may be another
            sinks.insert(0, WandbLogger(configs, wandb_project, wandb_entity, ids))
        if verbose:
            sinks.append(_LogRecords())
        console = ConsoleLogger(plan.steps, names) if progress and world.is_first else None
        if console is not None:
            sinks.append(console)
        sink = stack.enter_context(contextlib.closing(LoggerGroup(sinks)))
        stop = stack.enter_context(StopRequest(checkpoints is not None))
        asked = {**plan._asdict(), "keep_checkpoints": keep_checkpoints, "run_cfg": run_cfg}
        asked["evaluation"] = None if evaluation is None else evaluation.to_dict()
        record_of_run = functools.partial(describe_run, names, settings, stream, facts)
        record_at = folder if world.is_first else None
        record = stack.enter_context(RunRecord(record_at, record_of_run, data, device, step, n_tokens, asked))
        evaluator = None
        if evaluate_every is not None:
            best = None if best_by is None or folder is None else Best(*best_by, folder, save_format)

            def export() -> list[Dictionary]:
                own = exported(jobs, stream.data, run_cfg)
                return placed.of_all((job.number, one) for job, one in zip(jobs, own, strict=True))

            evaluator = Evaluation(evaluate_every, plan.steps, jobs, held_out, sink, best, export, places, world)
        output = RunOutput(plan, jobs, stream, run_cfg, checkpoints, run, sink, console, stop, placed, evaluator)
        if evaluator is not None and resumed is not None:
            evaluator.load_state_dict(resumed.evaluation)
        if resumed is not None:
            output.patience.load_state_dict(resumed.patience)
            if world.is_first:
                sink.resume(step, resumed.loggers)
        if step == 0 and 0 in plan.save_steps:
            output.export("checkpoints/step_0")
        while step < plan.steps and not output.is_over:
            with output.kept_if_it_fails(step):
                batch = next(stream, None)
                if batch is None:
                    ended = "The data ended after %d of %d steps; the learning rate had not decayed."
                    logger.warning(ended, step, plan.steps)
                    break
                train_step(jobs, batch, device, autocast_dtype)
                n_tokens += stream.n_tokens  # of all ranks
            record.step, record.n_tokens = step + 1, n_tokens
            done = step + 1
            step, n_tokens = output.after_step(done, n_tokens)
            if step != done:  # rolled back, while the data go on
                stream.expect(plan.steps - step)
        for job in jobs:
            job.trainer.finish()
        # before the loggers close: their failures must not cost the weights
        dictionaries = output.export()
        if most := peak_memory(device):
            logger.info("The process has held at most %s on %s.", as_bytes(most), device)
    if folder is not None and world.is_first and (n := len(dictionaries) - output.n_elsewhere):
        logger.info("Saved %s in '%s'.", counted(n, "dictionary", "dictionaries"), shown(folder))
    check_finite(names, dictionaries)
    check_trained(jobs, dict(zip(names, dictionaries, strict=True)))
    with only_first_talks(world):
        _warn_of_divergence(jobs)
    return dictionaries


def _stream(data: Any, world: Ranks, n_shares: int, split_by_head: bool) -> Stream:
    if isinstance(data, TracedElsewhere):
        data.check_shares(n_shares)
    if n_shares == world.size == 1:
        return ActivationStream(data, split_by_head=split_by_head)
    return SpreadStream(data, n_shares, world, split_by_head=split_by_head)


def _warn_of_idle_autocast(jobs: Sequence[TrainingJob], autocast_dtype: torch.dtype) -> None:
    trainers = [job.trainer for job in jobs]
    if autocast_dtype != torch.float32 and not any(t.settings.needs_predictions or t.may_draw for t in trainers):
        logger.warning(
            "autocast_dtype=%s has no effect in this run: these methods choose the type of each product by themselves, "
            "bfloat16 where that is fast and changes no result. It is for loss_fn 'ce' and 'kl'.",
            autocast_dtype,
        )


def _warn_of_divergence(jobs: Sequence[TrainingJob]) -> None:
    for job in jobs:
        fvu, settings = figures_of(job).get("fvu", 0.0), job.trainer.settings
        # with the model's loss as objective, the reconstruction may leave the activations
        if fvu > 1 and not settings.needs_predictions:
            worse = "'%s' ended with FVU %.2f, worse than the mean of the activations. "
            logger.warning(f"{worse}Lower its learning rate (%.2g), or train longer.", job.name, fvu, settings.lr)


class _LogRecords:
    """Logs all figures through `logging`."""

    def log(self, figures: Mapping[str, Mapping[str, float]], step: int, tokens: int) -> None:
        for name, values in figures.items():
            logger.info("step %d, %s: %s", step, name, ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def close(self) -> None:
        pass
