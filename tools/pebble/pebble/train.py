"""The trainer: one process on a GPU, or several on a CPU that average their gradients.

The run is planned by time or by tokens, whichever is first; the rate falls to nothing at its end. On a CPU the time is
what the first process's thread has computed, so that a run that is slowed or stopped for a while keeps its plan.
Checkpoints hold all that a later run needs to go on; SIGTERM writes one and ends.
"""

import json
import random
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open

from .batches import Files, Request, Source
from .curriculum import CPU, GPU, stage
from .model import Config, Pebble
from .optimizer import optimizers
from .quantize import simulated


@dataclass
class Preset:
    config: Config
    stages: list
    tokens_per_step: int
    tokens: int
    minutes: float


PRESETS = {
    "cpu": Preset(Config(), CPU, 4096, 60_000_000, 80),
    "h200": Preset(
        Config(
            hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2
        ),
        GPU,
        65_536,
        600_000_000,
        20,
    ),
}
WARM_UP_STEPS = 30
DECAY_FROM = 0.55
RENDEZVOUS = "rendezvous"
"""Where processes find each other."""
RIGHT = ("decisions", "values", "tools", "looks_at_tools", "looks_at_values")
LIMIT = "tokens"
"""A file with another limit in tokens, for a run that has more or less of a machine than was thought."""
REPORT_EVERY_S = 15
CHECKPOINT_EVERY_S = 120


@dataclass
class Plan:
    preset: Preset
    files: Files
    out: Path
    device: str
    minutes: float
    tokens: int
    threads: int
    processes: int
    workers: int
    autocast: bool
    seed: int
    start_at: float
    """The part of the plan that is behind a run that goes on from a checkpoint with more time."""
    resume: Path | None
    from_weights: Path | None
    """A model directory to begin from, with new optimizers."""
    rate: float
    """Of the peak learning rates. At full rate a run that begins from weights forgets first what they can."""
    compiled: bool


def run(plan: Plan) -> None:
    """Trains, and leaves `checkpoint.pt` and `log.jsonl` in `plan.out`."""
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.processes == 1:
        return _train(0, plan)
    (plan.out / RENDEZVOUS).unlink(missing_ok=True)
    running = torch.multiprocessing.spawn(_train, args=(plan,), nprocs=plan.processes, join=False)
    # The first one tells the others.
    signal.signal(signal.SIGTERM, lambda *_: running.processes[0].terminate())
    while not running.join():
        pass


def _train(rank: int, plan: Plan) -> None:
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    if plan.processes > 1:
        found = f"file://{(plan.out / RENDEZVOUS).resolve()}"
        dist.init_process_group("gloo", found, rank=rank, world_size=plan.processes)
    training = Training(rank, plan)
    try:
        training.run()
    finally:
        training.source.close()
    if plan.processes > 1:
        dist.destroy_process_group()


class Training:
    """One process of a run."""

    def __init__(self, rank: int, plan: Plan):
        self.rank, self.plan = rank, plan
        self.source = Source(plan.files, plan.workers)
        self.model = Pebble(plan.preset.config).to(plan.device)
        self.optimizers = optimizers(self.model)
        self.state = {"tokens": 0, "seconds": 0.0, "steps": 0}
        if plan.resume:
            saved = torch.load(plan.resume, map_location=plan.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            for optimizer, values in zip(self.optimizers, saved["optimizers"]):
                optimizer.load_state_dict(values)
            self.state = saved["state"]
        elif plan.from_weights:
            with safe_open(plan.from_weights / "model.safetensors", "pt", plan.device) as file:
                self.model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
                # What `export` tells of their training.
                trained = file.metadata() or {}
            self.state = {name: type(none)(trained.get(name, none)) for name, none in self.state.items()}
        self.before = dict(self.state)
        if plan.compiled:
            self.model.compile()
        self.cast = torch.autocast(plan.device, torch.bfloat16) if plan.autocast else nullcontext()
        # Lengths and paths are drawn alike in every process, dialogues are not.
        self.rng = random.Random(plan.seed * 7919 + self.state["steps"])
        self.stopped = False
        self.limit = plan.out / LIMIT
        self.started, self.clock_started = time.monotonic(), self._clock()

    def _clock(self) -> float:
        """Seconds that count for the plan."""
        return time.thread_time() if self.plan.device == "cpu" else time.monotonic()

    def run(self) -> None:
        """All steps; the first process reports and saves."""
        if self.rank == 0:
            signal.signal(signal.SIGTERM, self._stop)
        shown = saved = self.started
        recent = []
        while (progress := self._progress()) < 1:
            recent.append(self._step(progress))
            if self.rank > 0:
                continue
            if time.monotonic() - shown > REPORT_EVERY_S:
                self._report(progress, recent)
                shown, recent = time.monotonic(), []
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                self._save()
                saved = time.monotonic()
        if self.rank == 0:
            self._save()

    def _stop(self, *_) -> None:
        self.stopped = True

    def _progress(self) -> float:
        """How much of the plan is done, agreed by all processes."""
        plan = self.plan
        time_spent = (self._clock() - self.clock_started) / (60 * plan.minutes)
        limit = int(self.limit.read_text()) if self.limit.exists() else plan.tokens
        tokens_spent = (self.state["tokens"] - self.before["tokens"]) / limit
        progress = plan.start_at + (1 - plan.start_at) * max(time_spent, tokens_spent)
        if self.stopped:
            progress = 1.0
        if plan.processes > 1:
            agreed = torch.tensor([progress])
            dist.broadcast(agreed, 0)
            progress = agreed.item()
        return progress

    def _step(self, progress: float) -> torch.Tensor:
        """One step; the loss, and what was right."""
        plan, now = self.plan, stage(self.plan.preset.stages, progress)
        length = self.rng.choices(list(now.lengths), list(now.lengths.values()))[0]
        quantised = self.rng.random() < now.quantised
        rows = max(1, plan.preset.tokens_per_step // plan.processes // length)
        seed = (plan.seed * 1_000_003 + self.state["steps"]) * 64 + self.rank
        ids, weights, *targets = self.source.get(Request(rows, length, tuple(now.shapes.items()), seed))
        self.state["tokens"] += weights[:, 1:].size * plan.processes
        self.state["steps"] += 1
        ids = torch.from_numpy(ids).to(plan.device, non_blocking=True).int()
        weights = torch.from_numpy(weights).to(plan.device, non_blocking=True).float()
        targets = [torch.from_numpy(of).to(plan.device, non_blocking=True).int() for of in targets]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        with simulated(self.model) if quantised else nullcontext():
            with self.cast:
                loss, right = self.model.loss(ids, weights, *targets)
            loss.backward()
        if plan.processes > 1:
            self._average()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self._rate(progress)
            optimizer.step()
        return torch.cat((loss.detach()[None], right))

    def _rate(self, progress: float) -> float:
        # A resumed run has its optimizers' averages.
        began = 0 if self.plan.resume else self.before["steps"]
        warm = (self.state["steps"] - began) / WARM_UP_STEPS
        return self.plan.rate * min(1.0, warm, (1 - progress) / (1 - DECAY_FROM))

    def _average(self) -> None:
        """Gradients of all processes to their mean."""
        grads = [p.grad for p in self.model.parameters()]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for g, mean in zip(grads, (flat / self.plan.processes).split([g.numel() for g in grads])):
            g.copy_(mean.view_as(g))

    def _report(self, progress: float, recent: list[torch.Tensor]) -> None:
        loss, *right = torch.stack(recent).nanmean(0).tolist()
        tokens = self.state["tokens"]
        line = {
            "progress": round(progress, 4),
            "steps": self.state["steps"],
            "tokens": tokens,
            "loss": round(loss, 4),
            "right": dict(zip(RIGHT, (round(share, 3) for share in right))),
            "tokens_per_s": round((tokens - self.before["tokens"]) / (time.monotonic() - self.started)),
            "rate": round(self._rate(progress), 3),
        }
        with (self.plan.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def _save(self) -> None:
        self.state["seconds"] = self.before["seconds"] + self._clock() - self.clock_started
        path = self.plan.out / "checkpoint.pt"
        saved = {
            "config": asdict(self.model.config),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": self.state,
        }
        torch.save(saved, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


def load(path: Path, device: str = "cpu") -> tuple[Pebble, dict]:
    """The model of a checkpoint, and how far it came."""
    saved = torch.load(path, map_location=device, weights_only=True)
    model = Pebble(Config(**saved["config"])).to(device)
    model.load_state_dict(saved["model"])
    return model.eval(), saved["state"]
