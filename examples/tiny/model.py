"""DeepSeek-V4 in plain torch, small and trainable: the forward pass of shared/facts/deepseek-v4.md, sections 3 and 4.

The whole sequence is computed at once with masks; there is no cache and no tensor parallelism. Parameter names are
those of a DeepSeek checkpoint, except that the routed experts of a layer are stacked (`ffn.experts.w1` [E, I, D]).

Shape suffixes: B batch, S positions, N residual streams (hc_mult), D hidden, H heads, K head dim, R rope dim,
W compressed windows, J index heads, L index head dim, E routed experts, I expert hidden, V vocabulary.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from quantization import fake_fp4, fake_fp8
from torch import Tensor, nn
from torch.nn import functional

ACTIVATION_GROUP = 128  # FP8 activations in front of FP8 and FP4 linears
KV_GROUP = 64  # FP8 keys/values, on the dimensions without RoPE


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass reads; names as there, rope_scaling flattened."""

    vocab_size: int
    hidden_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_hash_layers: int
    num_attention_heads: int
    n_routed_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    swiglu_limit: float
    q_lora_rank: int
    head_dim: int
    qk_rope_head_dim: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    rope_theta: float
    compress_rope_theta: float
    rope_factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    compress_ratios: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> "Config":
        """The configuration in a checkpoint's config.json."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        rope = fields["rope_scaling"]
        fields |= {"rope_factor": rope["factor"], "beta_fast": rope["beta_fast"], "beta_slow": rope["beta_slow"]}
        fields["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
        fields["compress_ratios"] = tuple(fields["compress_ratios"])
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Numerics:
    """How a checkpoint is run.

    quantize_activations: as the native kernels do (facts 4.5 a to c); False is the run of a BF16 release.
    dtype: of the streams and of every linear's input and output.
    """

    quantize_activations: bool
    dtype: torch.dtype = torch.bfloat16


NATIVE = Numerics(quantize_activations=True)
BF16 = Numerics(quantize_activations=False)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [.., m, k] times b [.., k, n] in FP32; on a GPU, TF32 keeps products of BF16 operands exact."""
    return a.float() @ b.float()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [.., m, i] times weight [.., o, i] transposed, accumulated in FP32 and rounded to x's dtype once."""
    if x.is_cuda:
        return torch.matmul(x, weight.to(x.dtype).transpose(-1, -2))
    return torch.matmul(x.float(), weight.float().transpose(-1, -2)).to(x.dtype)


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in x's dtype."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """RMS norm in FP32 with a weight."""

    def __init__(self, size: int, eps: float) -> None:
        """Start as the identity scale."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[.., size] -> [.., size], same dtype."""
        return (rms_normalize(x.float(), self.eps) * self.weight).to(x.dtype)


class Linear(nn.Module):
    """A weight [o, i] that is stored in FP8 or BF16; FP8 linears quantise their input unless told otherwise."""

    def __init__(
        self, inputs: int, outputs: int, numerics: Numerics, *, fp8: bool, quantize_input: bool = True
    ) -> None:
        """Draw the weight with standard deviation 1/sqrt(inputs)."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.fp8 = fp8
        self.quantize_input = fp8 and quantize_input and numerics.quantize_activations

    def forward(self, x: Tensor) -> Tensor:
        """[.., i] -> [.., o]."""
        if self.quantize_input:
            x = fake_fp8(x, ACTIVATION_GROUP)
        return linear(x, self.weight)


class Rotations(NamedTuple):
    """Cosines and sines [S, R/2] by position: without YaRN for sliding layers, with it for compressed ones."""

    sliding: Tensor
    compressed: Tensor

    @classmethod
    def of(cls, config: Config, positions: int, device: torch.device) -> "Rotations":
        """Complex rotations as real pairs [S, R/2, 2] of positions 0 .. positions - 1."""
        return cls(
            _rotation(_frequencies(config.rope_theta, config.qk_rope_head_dim), positions).to(device),
            _rotation(_yarn_frequencies(config), positions).to(device),
        )


def _frequencies(theta: float, rope_dim: int) -> Tensor:
    """theta^(-2i/R), i < R/2."""
    return theta ** (-torch.arange(0, rope_dim, 2, dtype=torch.float64) / rope_dim)


def _yarn_frequencies(config: Config) -> Tensor:
    """YaRN: slow rotations are divided by the factor, fast ones stay, a linear ramp lies between."""
    rope_dim, theta = config.qk_rope_head_dim, config.compress_rope_theta

    def correction(beta: float) -> float:
        turns = config.original_max_position_embeddings / (beta * 2 * math.pi)
        return rope_dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(correction(config.beta_fast)), 0)
    high = min(math.ceil(correction(config.beta_slow)), rope_dim - 1)
    ramp = (torch.arange(rope_dim // 2, dtype=torch.float64) - low) / (high - low if high > low else 0.001)
    smooth = 1 - ramp.clamp(0, 1)
    frequencies = _frequencies(theta, rope_dim)
    return frequencies / config.rope_factor * (1 - smooth) + frequencies * smooth


def _rotation(frequencies: Tensor, positions: int) -> Tensor:
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()], -1).float()


def rotate(x: Tensor, rotation: Tensor, *, inverse: bool = False) -> Tensor:
    """RoPE on the last R dimensions of x [.., S, K] or, with heads, [.., S, H, K]; pairs (2i, 2i+1), FP32."""
    rope_dim = 2 * rotation.shape[-2]
    if x.dim() == 4:
        rotation = rotation.unsqueeze(-3)
    cos, sin = rotation[..., 0], rotation[..., 1] * (-1 if inverse else 1)
    even, odd = x[..., -rope_dim:].float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    return torch.cat([x[..., :-rope_dim], rotated.to(x.dtype)], -1)


def hadamard_matrix(size: int) -> Tensor:
    """The Sylvester-ordered Hadamard matrix over sqrt(size)."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix * size**-0.5


def visible_windows(positions: int, ratio: int, device: torch.device) -> Tensor:
    """[S, W] bool: query t sees compressed window w iff w < floor((t + 1) / ratio)."""
    queries = torch.arange(positions, device=device)
    return torch.arange(positions // ratio, device=device) < ((queries + 1) // ratio).unsqueeze(-1)


def sliding_mask(positions: int, window: int, device: torch.device) -> Tensor:
    """[S, 2 window] bool for the keys of `chunk_pairs`: query t sees key j iff t - window < j <= t."""
    query = torch.arange(positions, device=device).unsqueeze(-1)
    key = (query // window - 1) * window + torch.arange(2 * window, device=device)
    return (key >= 0) & (key <= query) & (key > query - window)


def chunk_pairs(keys_bsk: Tensor, window: int) -> Tensor:
    """[B, S, K] -> [B, S / window, 2 window, K]: for each chunk of queries the keys of the chunk before and its own."""
    chunks = keys_bsk.unflatten(1, (-1, window))
    return torch.cat([functional.pad(chunks[:, :-1], (0, 0, 0, 0, 1, 0)), chunks], 2)


class Compressor(nn.Module):
    """Turns every `ratio` positions into one key/value by a per-channel softmax; ratio 4 overlaps the window before."""

    def __init__(self, config: Config, ratio: int, head_dim: int, numerics: Numerics, *, for_index: bool) -> None:
        """Ratio 4 has two sets of channels: [0, d) read as the previous window, [d, 2d) as the current one."""
        super().__init__()
        self.ratio, self.overlap, self.numerics, self.for_index = ratio, ratio == 4, numerics, for_index
        channels = head_dim * (2 if self.overlap else 1)
        self.wkv = Linear(config.hidden_size, channels, numerics, fp8=False)
        self.wgate = Linear(config.hidden_size, channels, numerics, fp8=False)
        self.ape = nn.Parameter(torch.zeros(ratio, channels))
        self.norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.rope_dim = config.qk_rope_head_dim
        if for_index:
            self.register_buffer("hadamard", hadamard_matrix(head_dim), persistent=False)

    def _previous(self, x: Tensor, fill: float) -> Tensor:
        """The slots [B, W, r, 2d] as [B, W, 2r, d]: the previous window's first half, this window's second half."""
        previous, current = x.chunk(2, -1)
        previous = functional.pad(previous[:, :-1], (0, 0, 0, 0, 1, 0), value=fill)
        return torch.cat([previous, current], 2)

    def forward(self, x_bsd: Tensor, rotation: Tensor) -> Tensor:
        """[B, S, D] -> [B, W, K]; an incomplete last window is left out."""
        windows = x_bsd.shape[1] // self.ratio
        x = x_bsd[:, : windows * self.ratio].float()
        kv = functional.linear(x, self.wkv.weight).unflatten(1, (windows, self.ratio))
        gate = functional.linear(x, self.wgate.weight).unflatten(1, (windows, self.ratio)) + self.ape
        if self.overlap:
            kv, gate = self._previous(kv, 0.0), self._previous(gate, float("-inf"))
        pooled = (kv * gate.softmax(2)).sum(2).to(x_bsd.dtype)
        key = rotate(self.norm(pooled), rotation[: windows * self.ratio : self.ratio])
        if self.for_index:
            return index_format(key, self.hadamard, self.numerics)
        return kv_format(key, self.rope_dim, self.numerics)


def kv_format(kv: Tensor, rope_dim: int, numerics: Numerics) -> Tensor:
    """Keys/values as the native cache holds them: FP8 per 64 on the dimensions without RoPE."""
    if not numerics.quantize_activations:
        return kv
    return torch.cat([fake_fp8(kv[..., :-rope_dim], KV_GROUP), kv[..., -rope_dim:]], -1)


def index_format(x: Tensor, hadamard: Tensor, numerics: Numerics) -> Tensor:
    """Index queries and keys: Hadamard, then natively FP4 per 32."""
    x = matmul(x, hadamard).to(x.dtype)
    return fake_fp4(x) if numerics.quantize_activations else x


class Indexer(nn.Module):
    """Scores the compressed windows of a ratio-4 layer; attention sees the best index_topk of them."""

    def __init__(self, config: Config, numerics: Numerics) -> None:
        """Its own queries, its own compressed keys, one weight a head."""
        super().__init__()
        self.heads, self.head_dim = config.index_n_heads, config.index_head_dim
        self.topk, self.numerics = config.index_topk, numerics
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.head_dim, numerics, fp8=True)
        self.weights_proj = Linear(config.hidden_size, self.heads, numerics, fp8=False)
        self.compressor = Compressor(config, 4, self.head_dim, numerics, for_index=True)
        self.register_buffer("hadamard", hadamard_matrix(self.head_dim), persistent=False)

    def forward(self, x_bsd: Tensor, qr_bsq: Tensor, rotation: Tensor) -> Tensor:
        """Scores [B, S, W] in FP32, before any mask."""
        q_bsjl = rotate(self.wq_b(qr_bsq).unflatten(-1, (self.heads, self.head_dim)), rotation)
        q_bsjl = index_format(q_bsjl, self.hadamard, self.numerics)
        k_bwl = self.compressor(x_bsd, rotation)
        weight_bsj = self.weights_proj(x_bsd) * (self.head_dim**-0.5 * self.heads**-0.5)
        product = matmul(q_bsjl.flatten(1, 2), k_bwl.transpose(1, 2)).unflatten(1, q_bsjl.shape[1:3])
        return (product.relu() * weight_bsj.float().unsqueeze(-1)).sum(2)

    def select(self, scores_bsw: Tensor, visible_sw: Tensor) -> Tensor:
        """[B, S, W] bool: the top index_topk, visible windows first."""
        count = min(self.topk, scores_bsw.shape[-1])
        best = scores_bsw.masked_fill(~visible_sw, float("-inf")).topk(count, -1).indices
        return torch.zeros_like(scores_bsw, dtype=torch.bool).scatter(-1, best, True)


class Attention(nn.Module):
    """Attention of one shared key/value head over a sliding window and, for ratio 4 and 128, compressed windows."""

    def __init__(self, config: Config, ratio: int, numerics: Numerics) -> None:
        """Low-rank queries, one key/value vector a position, grouped low-rank output."""
        super().__init__()
        self.config, self.ratio, self.numerics = config, ratio, numerics
        heads, head_dim, hidden = config.num_attention_heads, config.head_dim, config.hidden_size
        group_inputs = heads * head_dim // config.o_groups
        self.attn_sink = nn.Parameter(torch.zeros(heads))
        self.wq_a = Linear(hidden, config.q_lora_rank, numerics, fp8=True)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = Linear(config.q_lora_rank, heads * head_dim, numerics, fp8=True)
        self.wkv = Linear(hidden, head_dim, numerics, fp8=True)
        self.kv_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.wo_a = Linear(group_inputs, config.o_groups * config.o_lora_rank, numerics, fp8=True, quantize_input=False)
        self.wo_b = Linear(config.o_groups * config.o_lora_rank, hidden, numerics, fp8=True)
        if ratio:
            self.compressor = Compressor(config, ratio, head_dim, numerics, for_index=False)
        if ratio == 4:
            self.indexer = Indexer(config, numerics)

    def forward(self, x_bsd: Tensor, rotations: Rotations, see_all: Tensor) -> tuple[Tensor, Tensor]:
        """Output [B, S, D] and the indexer's training loss (0 without an indexer).

        see_all [] bool lets ratio-4 layers see every compressed window, as early training does.
        """
        config, positions, device = self.config, x_bsd.shape[1], x_bsd.device
        rotation = rotations.compressed if self.ratio else rotations.sliding
        qr_bsq = self.q_norm(self.wq_a(x_bsd))
        q_bshk = self.wq_b(qr_bsq).unflatten(-1, (config.num_attention_heads, config.head_dim))
        q_bshk = rotate(rms_normalize(q_bshk, config.rms_norm_eps), rotation)
        kv_bsk = rotate(self.kv_norm(self.wkv(x_bsd)), rotation)
        local_keys = chunk_pairs(kv_format(kv_bsk, config.qk_rope_head_dim, self.numerics), config.sliding_window)
        mask = sliding_mask(positions, config.sliding_window, device).expand(len(x_bsd), -1, -1)
        windows_bwk, loss = None, x_bsd.new_zeros((), dtype=torch.float32)
        if self.ratio:
            windows_bwk = self.compressor(x_bsd, rotation)
            visible = visible_windows(positions, self.ratio, device)
            selected = visible.expand(len(x_bsd), -1, -1)
        logits = attention_logits(q_bshk, local_keys, windows_bwk) * config.head_dim**-0.5
        if self.ratio == 4:
            scores = self.indexer(x_bsd.detach(), qr_bsq.detach(), rotation)
            loss = index_loss(logits[..., local_keys.shape[2] :], scores, visible)
            selected = visible & (self.indexer.select(scores, visible) | see_all)
        if self.ratio:
            mask = torch.cat([mask, selected], 2)
        o_bshk = attend(logits, mask.unsqueeze(-2), self.attn_sink, local_keys, windows_bwk)
        o_bshk = rotate(o_bshk, rotation, inverse=True)
        return self.wo_b(self._grouped(o_bshk)), loss

    def _grouped(self, o_bshk: Tensor) -> Tensor:
        """wo_a: each of the o_groups groups of heads has its own matrix [o_lora_rank, inputs of the group]."""
        config = self.config
        o_bsgi = o_bshk.flatten(2).unflatten(-1, (config.o_groups, -1))
        weight_goi = self.wo_a.weight.unflatten(0, (config.o_groups, config.o_lora_rank))
        grouped = linear(o_bsgi.flatten(0, 1).transpose(0, 1), weight_goi)
        return grouped.transpose(0, 1).flatten(1).unflatten(0, o_bshk.shape[:2])


def attention_logits(q_bshk: Tensor, local_keys: Tensor, windows_bwk: Tensor | None) -> Tensor:
    """q . k in FP32 [B, S, H, 2 window + W]: first the keys of `chunk_pairs`, then the compressed windows."""
    shape = (*q_bshk.shape[:3], -1)
    chunks = q_bshk.reshape(*local_keys.shape[:2], -1, q_bshk.shape[-1])
    local = matmul(chunks, local_keys.transpose(2, 3)).reshape(shape)
    if windows_bwk is None:
        return local
    compressed = matmul(q_bshk.flatten(1, 2), windows_bwk.transpose(1, 2)).view(shape)
    return torch.cat([local, compressed], -1)


def attend(logits: Tensor, mask: Tensor, sink_h: Tensor, local_keys: Tensor, windows_bwk: Tensor | None) -> Tensor:
    """sparse_attn: the sink enters the denominator only, and not the maximum. Returns [B, S, H, K]."""
    dtype = local_keys.dtype
    logits = logits.masked_fill(~mask, float("-inf"))
    maximum = logits.detach().amax(-1, keepdim=True)
    weights = torch.exp(logits - maximum)
    denominator = weights.sum(-1, keepdim=True) + torch.exp(sink_h.unsqueeze(-1) - maximum)
    span = local_keys.shape[2]
    local, compressed = weights.to(dtype).tensor_split([span], -1)
    weighted = matmul(local.reshape(*local_keys.shape[:2], -1, span), local_keys).view(*logits.shape[:3], -1)
    if windows_bwk is not None:
        weighted = weighted + matmul(compressed.flatten(1, 2), windows_bwk).view(weighted.shape)
    return (weighted / denominator).to(dtype)


def index_loss(logits_bshw: Tensor, scores_bsw: Tensor, visible_sw: Tensor) -> Tensor:
    """Mean KL(attention's mass on the visible windows, averaged over heads || softmax of the index scores).

    This is how DeepSeek trains its indexer (V3.2 report): the target is detached, and so are the indexer's inputs.
    """
    hidden = ~visible_sw
    target = logits_bshw.detach().masked_fill(hidden.unsqueeze(-2), -1e4).softmax(-1).mean(2)
    predicted = scores_bsw.masked_fill(hidden, -1e4).log_softmax(-1)
    divergence = (target * (torch.log(target + 1e-9) - predicted)).masked_fill(hidden, 0.0).sum(-1)
    return divergence.mean()


class Gate(nn.Module):
    """Chooses experts: by score plus bias or, in the first layers, by a table of the token id."""

    def __init__(self, config: Config, *, hashed: bool) -> None:
        """`bias` only steers the choice and is set by load balancing, not by gradients."""
        super().__init__()
        experts, chosen = config.n_routed_experts, config.num_experts_per_tok
        self.config, self.hashed = config, hashed
        self.weight = nn.Parameter(torch.randn(experts, config.hidden_size) * config.hidden_size**-0.5)
        if hashed:
            table = torch.rand(config.vocab_size, experts).argsort(-1)[:, :chosen].contiguous()
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.zeros(experts))
            self.register_buffer("load", torch.zeros(experts), persistent=False)

    def forward(self, x_bsd: Tensor, ids_bs: Tensor) -> Tensor:
        """Routing weights [B, S, E], zero for experts that were not chosen."""
        scores = functional.softplus(functional.linear(x_bsd.float(), self.weight)).sqrt()
        if self.hashed:
            chosen = self.tid2eid[ids_bs]
        else:
            chosen = (scores + self.bias).topk(self.config.num_experts_per_tok, -1).indices
        picked = scores.gather(-1, chosen)
        picked = picked / picked.sum(-1, keepdim=True) * self.config.routed_scaling_factor
        routing = torch.zeros_like(scores).scatter(-1, chosen, picked)
        if self.training and not self.hashed:
            self.load += (routing.detach() > 0).float().flatten(0, 1).sum(0)
        return routing


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, limit)) * clamp(up, +-limit) in FP32."""
    return functional.silu(gate.float().clamp(max=limit)) * up.float().clamp(-limit, limit)


class RoutedExperts(nn.Module):
    """FP4 experts, stacked; every expert is computed for every token, and the routing weight is 0 for most."""

    def __init__(self, config: Config, numerics: Numerics) -> None:
        """w1 gate, w3 up, w2 down."""
        super().__init__()
        experts, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.limit, self.numerics = config.swiglu_limit, numerics
        self.w1 = nn.Parameter(torch.randn(experts, inner, hidden) * hidden**-0.5)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, inner) * inner**-0.5)
        self.w3 = nn.Parameter(torch.randn(experts, inner, hidden) * hidden**-0.5)

    def forward(self, x_td: Tensor, routing_te: Tensor) -> Tensor:
        """The routed sum [tokens, D] in FP32; the routing weight is applied in front of w2."""
        quantize = self.numerics.quantize_activations
        if quantize:
            x_td = fake_fp8(x_td, ACTIVATION_GROUP)
        gate = linear(x_td, self.w1)
        up = linear(x_td, self.w3)
        inner = (swiglu(gate, up, self.limit) * routing_te.t().unsqueeze(-1)).to(x_td.dtype)
        if quantize:
            inner = fake_fp8(inner, ACTIVATION_GROUP)
        return linear(inner, self.w2).float().sum(0)


class SharedExpert(nn.Module):
    """The FP8 expert that every token passes; it clamps like the routed ones."""

    def __init__(self, config: Config, numerics: Numerics) -> None:
        """w1 gate, w3 up, w2 down."""
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w1 = Linear(hidden, inner, numerics, fp8=True)
        self.w2 = Linear(inner, hidden, numerics, fp8=True)
        self.w3 = Linear(hidden, inner, numerics, fp8=True)

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return self.w2(swiglu(self.w1(x), self.w3(x), self.limit).to(x.dtype))


class MoE(nn.Module):
    """Routed experts plus the shared one."""

    def __init__(self, config: Config, numerics: Numerics, *, hashed: bool) -> None:
        """Hash-routed in the first num_hash_layers layers."""
        super().__init__()
        self.gate = Gate(config, hashed=hashed)
        self.experts = RoutedExperts(config, numerics)
        self.shared_experts = SharedExpert(config, numerics)

    def forward(self, x_bsd: Tensor, ids_bs: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        routing = self.gate(x_bsd, ids_bs)
        routed = self.experts(x_bsd.flatten(0, 1), routing.flatten(0, 1)).view(x_bsd.shape)
        return (routed + self.shared_experts(x_bsd).float()).to(x_bsd.dtype)


def sinkhorn(mixes: Tensor, scale: Tensor, base: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """hc_split_sinkhorn: mixes [.., 24] -> pre [.., N], post [.., N], comb [.., N, N], all FP32."""
    n, eps = config.hc_mult, config.hc_eps
    pre = torch.sigmoid(mixes[..., :n] * scale[0] + base[:n]) + eps
    post = 2 * torch.sigmoid(mixes[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mixes[..., 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n)).softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(config.hc_sinkhorn_iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return pre, post, comb


def stream_mixes(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    """fn [m, N * D] applied to the RMS-normalised flattened streams [.., N, D], FP32."""
    flat = streams.float().flatten(-2)
    return functional.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


def head_parameters(config: Config) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """hc_head_fn, hc_head_base, hc_head_scale: at the start half of every stream."""
    n = config.hc_mult
    fn = torch.randn(n, n * config.hidden_size) * 0.02
    return nn.Parameter(fn), nn.Parameter(torch.zeros(n)), nn.Parameter(torch.full((1,), 0.2))


def reduce_streams(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, config: Config) -> Tensor:
    """hc_head: the weighted sum [B, S, D] of the streams [B, S, N, D] that the final norm reads."""
    pre = torch.sigmoid(stream_mixes(streams, fn, config.rms_norm_eps) * scale + base) + config.hc_eps
    return (pre.unsqueeze(-1) * streams.float()).sum(-2).to(streams.dtype)


class Block(nn.Module):
    """Attention and MoE, each between a manifold-constrained hyper-connection's read and write."""

    def __init__(self, config: Config, layer: int, numerics: Numerics) -> None:
        """`layer` counts the MTP block too: it is the one after the last decoder layer."""
        super().__init__()
        self.config = config
        n, hidden = config.hc_mult, config.hidden_size
        for part in ("attn", "ffn"):
            setattr(self, f"hc_{part}_fn", nn.Parameter(torch.randn((2 + n) * n, n * hidden) * 0.02))
            setattr(self, f"hc_{part}_base", nn.Parameter(initial_mix(n, layer)))
            setattr(self, f"hc_{part}_scale", nn.Parameter(torch.full((3,), 0.2)))
        self.attn_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.attn = Attention(config, config.compress_ratios[layer], numerics)
        self.ffn = MoE(config, numerics, hashed=layer < config.num_hash_layers)

    def forward(self, streams: Tensor, ids_bs: Tensor, rotations: Rotations, see_all: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [B, S, N, D] -> streams, and the indexer's loss."""
        x, post, comb = self._read(streams, self.hc_attn_fn, self.hc_attn_scale, self.hc_attn_base)
        output, loss = self.attn(self.attn_norm(x), rotations, see_all)
        streams = write_streams(streams, output, post, comb)
        x, post, comb = self._read(streams, self.hc_ffn_fn, self.hc_ffn_scale, self.hc_ffn_base)
        return write_streams(streams, self.ffn(self.ffn_norm(x), ids_bs), post, comb), loss

    def _read(self, streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sub-layer's input [B, S, D], and post and comb for writing its output."""
        mixes = stream_mixes(streams, fn, self.config.rms_norm_eps)
        pre, post, comb = sinkhorn(mixes, scale, base, self.config)
        return (pre.unsqueeze(-1) * streams.float()).sum(-2).to(streams.dtype), post, comb


def initial_mix(n: int, layer: int) -> Tensor:
    """hc_*_base at the start: read mostly one stream (another in each layer), write to all, keep the streams apart."""
    pre = torch.full((n,), -2.0)
    pre[layer % n] = 2.0
    return torch.cat([pre, torch.zeros(n), (4 * torch.eye(n)).flatten()])


def write_streams(streams: Tensor, output: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """x'_k = post_k * output + sum_j comb[j, k] * x_j: the sum runs over comb's first index."""
    kept = (comb.unsqueeze(-1) * streams.float().unsqueeze(-2)).sum(-3)
    return (post.unsqueeze(-1) * output.float().unsqueeze(-2) + kept).to(streams.dtype)


class MultiTokenPredictor(Block):
    """mtp.0: from the streams at t and the token at t + 1, the hidden state that predicts the token at t + 2."""

    def __init__(self, config: Config, numerics: Numerics) -> None:
        """A sliding block with its own experts; embedding and head are the model's."""
        super().__init__(config, config.num_hidden_layers, numerics)
        hidden = config.hidden_size
        self.hc_head_fn, self.hc_head_base, self.hc_head_scale = head_parameters(config)
        self.e_proj = Linear(hidden, hidden, numerics, fp8=True)
        self.h_proj = Linear(hidden, hidden, numerics, fp8=True)
        self.enorm, self.hnorm, self.norm = (RMSNorm(hidden, config.rms_norm_eps) for _ in range(3))

    def predict(
        self, streams: Tensor, embedded: Tensor, next_ids: Tensor, rotations: Rotations, see_all: Tensor
    ) -> Tensor:
        """Streams [B, S, N, D] and embeddings [B, S, D] of the next tokens -> normed hidden states [B, S, D]."""
        x = self.e_proj(self.enorm(embedded)).unsqueeze(-2) + self.h_proj(self.hnorm(streams))
        x, _ = self(x, next_ids, rotations, see_all)
        return self.norm(reduce_streams(x, self.hc_head_fn, self.hc_head_base, self.hc_head_scale, self.config))


class Output(NamedTuple):
    """Logits [B, S, V] for the next token, MTP logits [B, S, V] for the one after it, the indexers' mean loss."""

    logits: Tensor
    mtp_logits: Tensor
    index_loss: Tensor


class TinyV4(nn.Module):
    """The whole model."""

    def __init__(self, config: Config, numerics: Numerics, *, mtp: bool = True) -> None:
        """Random weights; `checkpoint.load` fills them. `mtp`: with the preview's stage, which `forward` needs."""
        super().__init__()
        self.config, self.numerics = config, numerics
        self.hc_head_fn, self.hc_head_base, self.hc_head_scale = head_parameters(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer, numerics) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size, numerics, fp8=False)
        self.mtp = nn.ModuleList([MultiTokenPredictor(config, numerics)] if mtp else [])

    def decode(self, ids_bs: Tensor, rotations: Rotations, see_all: Tensor) -> tuple[list[Tensor], Tensor]:
        """The streams [B, S, N, D] that each decoder layer leaves, and the indexers' mean loss.

        S has to be a multiple of the sliding window.
        """
        embedding = self.embed.weight.to(self.numerics.dtype)
        streams = embedding[ids_bs].unsqueeze(-2).expand(-1, -1, self.config.hc_mult, -1)
        left, losses = [], []
        for layer in self.layers:
            streams, loss = layer(streams, ids_bs, rotations, see_all)
            left.append(streams)
            losses.append(loss)
        return left, torch.stack(losses).sum()

    def next_logits(self, streams: Tensor) -> Tensor:
        """Logits [B, S, V] for the next token from the streams that the last layer leaves."""
        hidden = reduce_streams(streams, self.hc_head_fn, self.hc_head_base, self.hc_head_scale, self.config)
        return self.logits(self.norm(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """FP32 hidden states times the FP32 head."""
        return functional.linear(hidden.float(), self.head.weight)

    def forward(self, ids_bs: Tensor, *, see_all_windows: bool = False) -> Output:
        """Token ids [B, S]; the last position's MTP logits are made from a token that is not there: ignore them."""
        positions = ids_bs.shape[1]
        ids_bs = functional.pad(
            ids_bs, (0, -positions % self.config.sliding_window)
        )  # attention is causal: padding is unseen
        rotations = Rotations.of(self.config, ids_bs.shape[1], ids_bs.device)
        see_all = torch.tensor(see_all_windows, device=ids_bs.device)
        left, loss = self.decode(ids_bs, rotations, see_all)
        next_ids = ids_bs.roll(-1, 1)
        embedded = self.embed.weight.to(self.numerics.dtype)[next_ids]
        predicted = self.mtp[0].predict(left[-1], embedded, next_ids, rotations, see_all)
        logits, mtp_logits = self.next_logits(left[-1]), self.logits(predicted)
        return Output(logits[:, :positions], mtp_logits[:, :positions], loss)
