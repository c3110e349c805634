"""A document in a row is the document alone: dense mask, tiles for flex_attention, both precisions, in pieces too."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from fmscale.config import Config, ModelConfig
from fmscale.model import decoder as decoder_module
from fmscale.model.decoder import Decoder, init_weights
from fmscale.model.layers import attend
from fmscale.model.mask import BLOCK, Mask, attention_mask, block_mask, dense_mask, documents
from fmscale.model.pipeline_layers import pipeline_layers
from fmscale.topology import Topology
from tests.numerics.worlds import SEQ_LEN, batch, config, label, learning_rate
from tests.ranks import run_ranks

CONFIG = ModelConfig(vocab_size=200, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, attention="document")
CAUSAL = dataclasses.replace(CONFIG, attention="causal")

row_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def positions(*lengths: int) -> Tensor:
    """Of one row: documents of these lengths, one after another. [T]"""
    return torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])


def random_positions(T: int, documents_of: int, rows: int, seed: int) -> Tensor:
    """Rows of T tokens in which a document begins at every `documents_of`-th token or so. [rows, T]"""
    begins = torch.rand(rows, T, generator=torch.Generator().manual_seed(seed)) < 1 / documents_of
    begins[:, 0] = True
    index = torch.arange(T).expand(rows, -1)
    return (index - torch.where(begins, index, 0).cummax(-1).values).int()


def decoder(config: ModelConfig = CONFIG) -> Decoder:
    model = Decoder(config)
    init_weights(model, dataclasses.replace(config, init_std=0.3), seed=0)  # large, so that attention is not uniform
    return model


def random_tokens(B: int, T: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (B, T), generator=torch.Generator().manual_seed(T))


def gradients(model: Decoder, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def assert_same_gradients(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float, floor: float = 0.01
) -> None:
    """Of each parameter, relative to its norm or to `floor` of the whole gradient's: that of queries which see one key
    each is 0 but for rounding."""
    whole = torch.stack([x.double().norm() for x in theirs.values()]).norm()
    for name, expected in theirs.items():
        error = (ours[name].double() - expected.double()).norm() / expected.double().norm().clamp(min=floor * whole)
        assert error < tolerance, f"{name}: {error:.1e}"


@given(rows=st.lists(row_lengths, min_size=1, max_size=3), n_kv_heads=st.sampled_from([1, 2, 4]))
@example(rows=[[1, 1, 1], [3]], n_kv_heads=2)
@example(rows=[[1, 1]], n_kv_heads=1)
@settings(max_examples=25, deadline=None)
def test_documents_in_a_row_are_documents_alone(rows: list[list[int]], n_kv_heads: int) -> None:
    """Logits and gradients of a micro-batch in fp32 are those of a loop over documents with a causal model.

    Rows are filled up with one more document, so that they are equally long; what a row's first tokens belong to does
    not matter: their positions begin at 0 as well where the document began in the row before.
    """
    T = max(map(sum, rows))
    rows = [[*lengths, T - sum(lengths)] if sum(lengths) < T else lengths for lengths in rows]
    model, causal = (decoder(dataclasses.replace(c, n_kv_heads=n_kv_heads)) for c in (CONFIG, CAUSAL))
    tokens_BT = random_tokens(len(rows), T)
    alone = [
        torch.cat([causal(document[None])[0] for document in row.split(lengths)])
        for row, lengths in zip(tokens_BT, rows, strict=True)
    ]
    expected = torch.stack(alone)[..., : CONFIG.vocab_size]
    ours = model(tokens_BT, torch.stack([positions(*lengths) for lengths in rows]))[..., : CONFIG.vocab_size]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    assert_same_gradients(
        gradients(model, (ours * weights).sum()),
        gradients(causal, (expected * weights).sum()),
        tolerance=1e-5,
        floor=0.1,  # where all documents are single tokens, that of queries is nothing but rounding
    )


def test_a_document_in_the_middle_of_a_row_sees_nothing_of_its_neighbours() -> None:
    """To the bit: whatever stands around it, its logits do not change."""
    model, tokens_BT, row = decoder(), random_tokens(1, 24), positions(9, 10, 5)[None]
    changed_BT = (tokens_BT + 1) % CONFIG.vocab_size
    changed_BT[:, 9:19] = tokens_BT[:, 9:19]
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        before, after = model(tokens_BT, row), model(changed_BT, row)
        assert torch.equal(before[:, 9:19], after[:, 9:19])
        assert (before[:, :9] != after[:, :9]).any(-1).all()
        assert (before[:, 19:] != after[:, 19:]).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_document_is_a_causal_sequence(dtype: torch.dtype) -> None:
    """Without positions there is one document. In bf16 even the bits are the same: only the mask's origin differs."""
    model, causal, tokens_BT = decoder().to(dtype), decoder(CAUSAL).to(dtype), random_tokens(3, 24)
    tolerance = 1e-5 if dtype == torch.float32 else 0.0
    torch.testing.assert_close(model(tokens_BT), causal(tokens_BT), rtol=tolerance, atol=tolerance)


def test_causal_attention_does_not_look_for_documents() -> None:
    """A causal model is as it was before there was a choice: positions turn queries and keys, and mask nothing."""
    model, tokens_BT, row = decoder(CAUSAL), random_tokens(1, 24), positions(9, 15)[None]
    assert attention_mask(row, "causal") is None
    changed_BT = tokens_BT.clone()
    changed_BT[0, 0] = (changed_BT[0, 0] + 1) % CONFIG.vocab_size
    assert (model(tokens_BT, row) != model(changed_BT, row)).any(-1).all()


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("T", [96, 1030])
def test_in_bfloat16_it_is_the_same_attention(T: int, n_kv_heads: int) -> None:
    """Up to 1,024 tokens by hand, beyond by torch's kernel: within 2^-6 of the exact values, as causal attention is."""
    mask = dense_mask(documents(random_positions(T, 20, 2, seed=T)))
    (ours, our_gradients), (exact, exact_gradients) = (
        attended(mask, T, n_kv_heads, dtype) for dtype in (torch.bfloat16, torch.float64)
    )
    torch.testing.assert_close(ours.double(), exact, rtol=2**-6, atol=2**-6)
    for mine, reference in zip(our_gradients, exact_gradients, strict=True):
        assert relative_error(mine, reference) < 2**-6


def attended(mask: Mask, T: int, n_kv_heads: int, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attention of 2 sequences of random queries, keys and values under `mask`, and its gradients."""
    generator = torch.Generator().manual_seed(0)
    heads = (4, n_kv_heads, n_kv_heads)
    inputs = [torch.randn(2, h, T, 16, generator=generator).bfloat16().to(dtype).requires_grad_() for h in heads]
    out = attend(*inputs, mask)
    upstream = torch.randn(out.shape, generator=generator).bfloat16().to(dtype)
    return out, torch.autograd.grad(out, inputs, upstream)


@given(
    T=st.integers(1, 4 * BLOCK + 1),
    mean_length=st.sampled_from([1, 30, 150, 10_000]),
    rows=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@example(T=4 * BLOCK, mean_length=10_000, rows=1, seed=0)
@example(T=3 * BLOCK + 1, mean_length=150, rows=2, seed=0)
@settings(max_examples=40, deadline=None)
def test_tiles_are_those_that_torch_finds_by_looking_at_every_pair(
    T: int, mean_length: int, rows: int, seed: int
) -> None:
    documents_BT = documents(random_positions(T, mean_length, rows, seed))
    ours = block_mask(documents_BT)
    theirs = torch_flex.create_block_mask(ours.mask_mod, rows, None, T, T, device="cpu", BLOCK_SIZE=BLOCK)
    assert ours.shape == theirs.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, columns = (
            [getattr(mask, f"{name}_{part}") for mask in (ours, theirs)] for part in ("num_blocks", "indices")
        )
        assert torch.equal(*counts), name
        assert torch.equal(*columns), name
        assert {x.dtype for x in (*counts, *columns)} == {torch.int32}
    pairs = torch_flex.create_mask(ours.mask_mod, rows, None, T, T, device="cpu")
    assert torch.equal(pairs, dense_mask(documents_BT))


@pytest.fixture
def flex_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention refuses gradients on a CPU, for want of a kernel; uncompiled it needs none."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


needs_flex = [
    pytest.mark.usefixtures("flex_on_a_cpu"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


class TestTiles:
    """flex_attention, uncompiled, against the dense mask."""

    pytestmark = needs_flex

    @pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_attention_and_gradients_are_the_dense_masks(self, n_kv_heads: int, dtype: torch.dtype) -> None:
        T = 2 * BLOCK + 40
        documents_BT = documents(random_positions(T, 100, 2, seed=0))
        (tiled, tiled_gradients), (dense, dense_gradients) = (
            attended(mask, T, n_kv_heads, dtype) for mask in (block_mask(documents_BT), dense_mask(documents_BT))
        )
        tolerance = 1e-5 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(tiled, dense, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(tiled_gradients, dense_gradients, strict=True):
            assert relative_error(ours, theirs) < tolerance

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_so_is_the_decoder(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        model, T = decoder().to(dtype), BLOCK + 40
        tokens_BT, rows = random_tokens(2, T), random_positions(T, 50, 2, seed=3)
        dense, dense_alone = model(tokens_BT, rows), model(tokens_BT)
        dense_gradients = gradients(model, dense[..., : CONFIG.vocab_size].square().sum())
        monkeypatch.setattr(decoder_module, "attention_mask", lambda p, _: block_mask(documents(p)))
        tiled, tiled_alone = model(tokens_BT, rows), model(tokens_BT)
        tolerance = 1e-5 if dtype == torch.float32 else 2**-4  # two layers that round elsewhere; measured 0.04
        assert relative_error(tiled, dense) < tolerance
        assert relative_error(tiled_alone, dense_alone) < tolerance
        tiled_gradients = gradients(model, tiled[..., : CONFIG.vocab_size].square().sum())
        assert_same_gradients(tiled_gradients, dense_gradients, tolerance)

    def test_it_compiles_as_one_graph_for_any_documents_and_lengths(self) -> None:
        """As `layers.attend` has it compiled on a GPU, but for the kernel: forward and backward are traced."""
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled: Any = torch.compile(torch_flex.flex_attention, fullgraph=True, backend=counter)
        for seed, T in enumerate((BLOCK, BLOCK, 2 * BLOCK, 3 * BLOCK, BLOCK + 40, BLOCK)):
            documents_BT = documents(random_positions(T, 50, 2, seed))
            inputs = [torch.randn(2, h, T, 16, requires_grad=True) for h in (4, 2, 2)]
            out = compiled(*inputs, block_mask=block_mask(documents_BT), enable_gqa=True)
            torch.testing.assert_close(out, attend(*inputs, dense_mask(documents_BT)), rtol=1e-5, atol=1e-5)
            out.sum().backward()
        assert counter.frame_count <= 3, "a graph for the first shape, one for any multiple of a tile, one for the rest"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pipeline_layers_are_the_decoder(dtype: torch.dtype) -> None:
    model, layers = decoder().to(dtype), [layer.to(dtype) for layer in pipeline_layers(CONFIG)]
    for ours, theirs in zip((p for layer in layers for p in layer.parameters()), list(model.parameters()), strict=True):
        ours.data.copy_(theirs)
    tokens_BT, rows = random_tokens(2, 24), torch.stack([positions(9, 1, 14), positions(24)])
    hidden: Any = (tokens_BT, rows)
    for layer in layers:
        hidden = layer(hidden)
    assert torch.equal(hidden, model(tokens_BT, rows))


def test_the_mask_is_made_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(decoder_module, "attention_mask", lambda *a: made.append(attention_mask(*a)) or made[-1])
    decoder()(random_tokens(2, 24))
    assert len(made) == 1


@pytest.mark.processes
def test_engines_agree_within_documents() -> None:
    """Through DeepSpeed's hooks, and from stage to stage, the mask is the plain engine's."""
    engines = [config(), config(dp=2), config("zero", dp=2), config("zero", dp=2, zero=3), config("pipe", pp=2)]
    engines = [dataclasses.replace(c, model=dataclasses.replace(c.model, attention="document")) for c in engines]
    ((reference, causal),) = run_ranks(_two_steps, 1, [engines[0], config()])
    assert abs(causal[0] - reference[0]) > 1e-4, "here documents make no difference, so this test sees none"
    for c, series in zip(engines[1:], run_ranks(_two_steps, 2, engines[1:])[0], strict=True):
        torch.testing.assert_close(series, reference, rtol=1e-5, atol=0, msg=lambda m, c=c: f"{label(c)}: {m}")


def _two_steps(rank: int, world: int, configs: list[Config]) -> list[list[float]]:
    """Of each config: loss, loss after an update, held-out loss."""
    from fmscale.training.engine import build_engine

    result = []
    for c in configs:
        topology = Topology(dp=c.parallel.dp, pp=c.parallel.pp)
        engine = build_engine(c, topology, rank, torch.device("cpu"))
        batches = [batch(c, step, topology.data_rank(rank)) for step in range(3)]
        documents = positions(5, 1, SEQ_LEN - 6).numpy()
        batches = [
            dataclasses.replace(each, positions=np.tile(documents, (len(each.positions), 1)).astype(np.int32))
            for each in batches
        ]
        losses = [engine.train_batch(each, learning_rate(step)).loss for step, each in enumerate(batches[:2])]
        result.append([*losses, engine.eval_batch(batches[2])])
        engine.close()
    return result
