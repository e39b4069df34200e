"""A whole device for Holdfast in Python: the forward pass of a Llama-shaped model in numpy, paged KV, and the contract of
proto/holdfast/device/v1. Slow, and complete: it passes the conformance suite that every device passes.

    pip install grpcio-tools numpy
    python3 examples/python-device/device.py --model DIR --weights DIGEST --listen unix:/tmp/device.sock
    cargo xtask device-conformance unix:/tmp/device.sock --model DIR

DIR is in Hugging Face layout (F32 or BF16 tensors); DIGEST names its weights, as `holdfast models inspect DIR` prints it. A row is computed
alone, in the same operations whatever its step holds: that is all it takes to be exact, and it is what makes it slow. Samples are drawn
by the runtime from the logits.
"""

import argparse
import json
import pathlib
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc_tools
import numpy as np
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).parents[2] / "proto"
SERVICE = "holdfast/device/v1/device_service.proto"
generated = tempfile.mkdtemp()
if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={generated}", f"--grpc_python_out={generated}", SERVICE]) != 0:
    sys.exit("the proto could not be compiled")
sys.path.insert(0, generated)
from holdfast.device.v1 import device_service_pb2 as pb, device_service_pb2_grpc as rpc  # noqa: E402

BLOCK_TOKENS, BLOCKS, SLOTS, ROWS = 16, 256, 16, 64
MESSAGE_BYTES, PART_BYTES, CHUNK_BYTES = 64 << 20, 16 << 20, 1 << 20  # a message, the logits in one, a chunk of a block


class Rejected(Exception):
    """A request breaks the contract; nothing of it happened."""


def require(holds, problem):
    if not holds:
        raise Rejected(problem)


def read_tensors(directory):
    """Every tensor of a directory's safetensors files, as float32."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = data[start + begin : start + end]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            elif entry["dtype"] == "F32":
                values = np.frombuffer(raw, "<f4")
            else:
                sys.exit(f"{name} is {entry['dtype']}; this device reads F32 and BF16")
            tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
    return tensors


class Model:
    """A Llama-shaped decoder. Weights are f32; a row is a vector, and each product a matrix times it."""
    def __init__(self, directory):
        config = json.loads((directory / "config.json").read_text())
        if config["model_type"] != "llama" or any(config.get(key) for key in ["rope_scaling", "attention_bias", "mlp_bias"]):
            sys.exit("this device computes plain Llama models: no biases, no stretched rotary embedding")
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.context, self.vocab, self.eps = config["max_position_embeddings"], config["vocab_size"], config["rms_norm_eps"]
        self.frequencies = config.get("rope_theta", 10000.0) ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        tensors = read_tensors(directory)
        self.embeddings, self.norm = tensors["model.embed_tokens.weight"], tensors["model.norm.weight"]
        self.head = self.embeddings if config.get("tie_word_embeddings") else tensors["lm_head.weight"]
        parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
        parts += ["mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
        self.parts = [[tensors[f"model.layers.{layer}.{part}.weight"] for part in parts] for layer in range(self.layers)]

    def rms(self, x, weight):
        return x * np.float32(1 / np.sqrt(np.mean(np.square(x, dtype=np.float64)) + self.eps)) * weight

    def turned(self, x, position):
        angles = position * self.frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        a, b = np.split(x, 2, axis=1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def row(self, token, position, store, seen):
        """Computes one row. `store(layer, k, v)` keeps its KV, `seen(layer)` gives keys and values up to it, [tokens, kv_heads,
        head_dim]. Returns the residual stream at its end."""
        x = self.embeddings[token]
        for layer, (q_w, k_w, v_w, o_w, gate_w, up_w, down_w, norm, ffn_norm) in enumerate(self.parts):
            y = self.rms(x, norm)
            q = self.turned((q_w @ y).reshape(self.heads, -1), position)
            store(layer, self.turned((k_w @ y).reshape(self.kv_heads, -1), position), (v_w @ y).reshape(self.kv_heads, -1))
            keys, values = seen(layer)
            mixed = np.empty_like(q)
            for head in range(self.heads):
                of = head * self.kv_heads // self.heads
                scores = (keys[:, of] @ q[head]) / np.float32(np.sqrt(self.head_dim))
                weights = np.exp(scores - scores.max())
                mixed[head] = (weights @ values[:, of]) / weights.sum()
            x = x + o_w @ mixed.reshape(-1)
            y = self.rms(x, ffn_norm)
            gate = gate_w @ y
            x = x + down_w @ (gate / (1 + np.exp(-gate)) * (up_w @ y))
        return x

    def logits(self, x):
        return self.head @ self.rms(x, self.norm)


class Device(rpc.DeviceServiceServicer):
    """One pool of KV, slots with their block tables, and at most one open step, which is computed when it is collected."""
    def __init__(self, model, name, weights):
        self.model, self.name, self.weights, self.epoch = model, name, weights, 1
        # [block, token in the block, layer, key or value, head, element]
        self.pool = np.zeros((BLOCKS, BLOCK_TOKENS, model.layers, 2, model.kv_heads, model.head_dim), np.float32)
        self.tables, self.open = {}, None
        self.owner, self.lock = threading.Lock(), threading.Lock()

    def description(self):
        group = pb.KvGroup(layers=range(self.model.layers), blocks=BLOCKS, bytes_per_block=self.pool[0].nbytes)
        return pb.Description(
            name=self.name, numerics_class="numpy/f32/r1", weights=self.weights, kv_layout="f32 token,layer,kv,head,element",
            block_tokens=BLOCK_TOKENS, kv_groups=[group], slots=SLOTS, vocab_size=self.model.vocab, draws_samples=False,
            limits=pb.StepLimits(rows=ROWS, sequences=SLOTS, context=min(self.model.context, BLOCKS * BLOCK_TOKENS), in_flight=1),
            precisions=[pb.PRECISION_NATIVE], epoch=self.epoch,
        )

    def Describe(self, request, context):
        return self.description()

    def RunSteps(self, requests, context):
        if not self.owner.acquire(blocking=False):
            context.abort(grpc.StatusCode.UNAVAILABLE, "another runtime has the device")
        try:
            if next(requests, pb.RunStepsRequest()).WhichOneof("request") != "open":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message opens the stream")
            yield pb.RunStepsReply(opened=self.description())
            for request in requests:
                try:
                    # The lock holds copies off a step, and a step off copies.
                    with self.lock:
                        replies = self.answer(request)
                except Rejected as problem:
                    replies = [pb.RunStepsReply(failure=pb.Failure(kind=pb.FAILURE_KIND_REJECTED, message=str(problem)))]
                yield from replies
        except grpc.RpcError:
            pass  # the runtime is gone, which ends the life as well as any other end
        finally:
            with self.lock:
                self.tables, self.open, self.epoch = {}, None, self.epoch + 1
            self.owner.release()

    def answer(self, request):
        kind = request.WhichOneof("request")
        if kind == "submit":
            require(self.open is None, "a step is open")
            self.tables, self.open = self.check(request.submit), request.submit
            return [pb.RunStepsReply(submitted=pb.StepSubmitted(step_id=self.open.step_id))]
        is_open = kind == "collect" and self.open is not None and request.collect.step_id == self.open.step_id
        require(is_open, f"step {request.collect.step_id} is not open")
        plan, self.open = self.open, None
        return self.compute(plan)

    def check(self, plan):
        """The tables after a plan's changes. The runtime has checked the plan; this keeps a wrong one from doing harm."""
        tables = {slot: list(table) for slot, table in self.tables.items()}
        for change in plan.slots:
            kind = change.WhichOneof("change")
            slot = change.close if kind == "close" else getattr(change, kind or "open").slot
            require((slot in tables) != (kind == "open") and slot < SLOTS, f"slot {slot} cannot be used for {kind}")
            if kind == "open":
                tables[slot] = []
            elif kind == "close":
                del tables[slot]
            else:
                end = change.table.first + len(change.table.blocks)
                require(change.table.group == 0 and end <= BLOCKS, "a table that cannot be")
                require(all(block < BLOCKS for block in change.table.blocks), "a block that is not there")
                tables[slot] += [None] * (end - len(tables[slot]))
                tables[slot][change.table.first : end] = change.table.blocks
        for copy in plan.copies:
            require(copy.group == 0 and max(getattr(copy, "from"), copy.to) < BLOCKS, "a copy of a block that is not there")
        require(sum(len(sequence.tokens) for sequence in plan.sequences) <= ROWS, "too many rows")
        for sequence in plan.sequences:
            table, end = tables.get(sequence.slot), sequence.start + len(sequence.tokens)
            require(table is not None and sequence.tokens and not sequence.last_sample_rows, "rows that cannot be computed")
            require(max(sequence.tokens) < self.model.vocab, "a token that is not in the vocabulary")
            require(sequence.precision == pb.PRECISION_NATIVE, "a precision that it does not have")
            entries = -(-(sequence.start if sequence.scratch else end) // BLOCK_TOKENS)
            require(len(table) >= entries and None not in table[:entries], "a row without a block")
            require(all(output.row < len(sequence.tokens) for output in sequence.outputs), "an output of no row")
        return tables

    def compute(self, plan):
        """Runs a step; its output in parts."""
        started = time.perf_counter_ns()
        for copy in plan.copies:
            self.pool[copy.to] = self.pool[getattr(copy, "from")]
        outputs = [output for sequence in plan.sequences for output in self.sequence(sequence)]
        parts, room = [pb.StepOutput(step_id=plan.step_id)], PART_BYTES
        for slot, row, logits in outputs:
            if room < len(logits):
                parts.append(pb.StepOutput(step_id=plan.step_id))
                room = PART_BYTES
            if not parts[-1].sequences or parts[-1].sequences[-1].slot != slot:
                parts[-1].sequences.add(slot=slot)
            parts[-1].sequences[-1].logits.add(row=row, logits=logits)
            room -= len(logits)
        parts[-1].last, parts[-1].device_time_us = True, (time.perf_counter_ns() - started) // 1000
        return [pb.RunStepsReply(output=part) for part in parts]

    def sequence(self, sequence):
        """Computes the rows of one sequence; what is wanted of them as (slot, row, logits)."""
        table = np.array(self.tables[sequence.slot], dtype=object)
        start, wanted, scratch, found = sequence.start, {output.row for output in sequence.outputs}, [], []
        for row, token in enumerate(sequence.tokens):
            position = start + row
            cell = np.zeros(self.pool.shape[2:], np.float32)
            scratch.append(cell)
            # Rows of scratch stay in this list; those of the pool are read from their blocks.
            in_pool = start if sequence.scratch else position + 1
            blocks = table[: -(-in_pool // BLOCK_TOKENS)].astype(np.int64)
            if not sequence.scratch:
                cell = self.pool[blocks[-1], position % BLOCK_TOKENS]

            def store(layer, k, v):
                cell[layer, 0], cell[layer, 1] = k, v

            def seen(layer):
                kv = self.pool[blocks, :, layer].reshape(-1, 2, *self.pool.shape[4:])[:in_pool]
                if sequence.scratch:
                    kv = np.concatenate([kv, np.stack([cell[layer] for cell in scratch])])
                return np.ascontiguousarray(kv[:, 0]), np.ascontiguousarray(kv[:, 1])

            x = self.model.row(token, position, store, seen)
            if row in wanted:
                found.append((sequence.slot, row, self.model.logits(x).astype("<f4").tobytes()))
        return found

    def checked_block(self, request, context):
        if request.epoch != self.epoch:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"life {request.epoch} is over")
        if request.group != 0 or request.block >= BLOCKS:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"block {request.block} of group {request.group} is not there")
        return request.block

    def ExportBlock(self, request, context):
        with self.lock:
            data = self.pool[self.checked_block(request, context)].tobytes()
        for at in range(0, len(data), CHUNK_BYTES):
            yield pb.ExportBlockReply(data=data[at : at + CHUNK_BYTES])

    def ImportBlock(self, requests, context):
        first, size = next(requests, pb.ImportBlockRequest()), self.pool[0].nbytes
        data = bytearray(first.data)
        for request in requests:
            data += request.data
            if len(data) > size:
                break
        if len(data) != size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{len(data)} bytes for a block of {size}")
        with self.lock:
            block = self.checked_block(first, context)
            self.pool[block] = np.frombuffer(data, "<f4").reshape(self.pool.shape[1:])
        return pb.ImportBlockReply()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a directory in Hugging Face layout")
    parser.add_argument("--weights", required=True, type=bytes.fromhex, help="the digest of its weights")
    parser.add_argument("--listen", required=True, help="unix:PATH or HOST:PORT")
    arguments = parser.parse_args()
    sizes = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(8), options=sizes + [("grpc.keepalive_time_ms", 10_000)])
    device = Device(Model(arguments.model), f"numpy:0 ({arguments.model.name})", arguments.weights)
    rpc.add_DeviceServiceServicer_to_server(device, server)
    port = server.add_insecure_port(arguments.listen)
    address = arguments.listen if arguments.listen.startswith("unix:") else f"{arguments.listen.rsplit(':', 1)[0]}:{port}"
    server.start()
    print(f"numpy lends {device.name} on {address}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
