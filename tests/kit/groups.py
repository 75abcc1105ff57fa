"""Rows with scales of groups, and GGUF's blocks: a decoder and an encoder in NumPy, from the formats' descriptions.

OCP Microscaling formats v1.0 (e2m1, e8m0: tables of section 5), NVFP4 and MXFP8 as FlashInfer lays them out (scales
beside the codes, the first of two e2m1 in the low bits), q8_0 and q4_0 as ggml does and quantises.
"""

import ml_dtypes
import numpy as np

from kit import reference as ref

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18}  # of 32 elements
SCALE_STORAGE = {"float32": np.float32, "float8_e8m0fnu": np.uint8, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}

# Of a stored type and its scales: out_dtype, size and dtype of GroupScales.
FORMS = {
    "e4m3 128": ("float8_e4m3fn", 128, "float32"),
    "e4m3 64": ("float8_e4m3fn", 64, "float32"),
    "int8 16": ("int8", 16, "float32"),
    "e2m1 32": ("float4_e2m1fn", 32, "float32"),
    "mxfp8": ("float8_e4m3fn", 32, "float8_e8m0fnu"),
    "mxfp8 e5m2": ("float8_e5m2", 32, "float8_e8m0fnu"),
    "mxfp4": ("float4_e2m1fn", 32, "float8_e8m0fnu"),
    "nvfp4": ("float4_e2m1fn", 16, "float8_e4m3fn"),
    "q8_0": ("q8_0", 32, None),
    "q4_0": ("q4_0", 32, None),
}

# Those of the pairwise tests: of 16 elements, which divide most heads there, but for blocks.
PAIRED = {"groups": (None, 16, "float32"), "mx": ("float4_e2m1fn", 16, "float8_e8m0fnu"), "nvfp4": FORMS["nvfp4"],
          "q8_0": FORMS["q8_0"]}  # fmt: skip


def row_bytes(out_dtype, d):
    """Of d elements."""
    if out_dtype in BLOCK_BYTES:
        return d // 32 * BLOCK_BYTES[out_dtype]
    return d // 2 if out_dtype == "float4_e2m1fn" else d


def codes_of(stored, out_dtype):
    """The numbers that codes stand for, without their scales, of rows of bytes: [..., d]."""
    stored = np.ascontiguousarray(stored).view(np.uint8)
    if out_dtype in BLOCK_BYTES:
        blocks = stored.reshape(*stored.shape[:-1], -1, BLOCK_BYTES[out_dtype])[..., 2:]
        if out_dtype == "q8_0":
            return blocks.view(np.int8).astype(np.float64).reshape(*stored.shape[:-1], -1)
        halves = np.concatenate([blocks & 15, blocks >> 4], -1)
        return halves.astype(np.float64).reshape(*stored.shape[:-1], -1) - 8
    if out_dtype == "float4_e2m1fn":
        two = np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], -1)
        return np.where(two & 8, -1, 1) * E2M1[two & 7]
    return ref.decode(stored.view(ref.storage(out_dtype)))


def units_of(stored, scales, form, tensor_scale=1.0):
    """The scale of every element. form: a name of FORMS, or a row of it."""
    out_dtype, size, scale_dtype = FORMS[form] if isinstance(form, str) else form
    if out_dtype in BLOCK_BYTES:
        stored = np.ascontiguousarray(stored).view(np.uint8)
        blocks = stored.reshape(*stored.shape[:-1], -1, BLOCK_BYTES[out_dtype])[..., :2]
        units = np.ascontiguousarray(blocks).view(np.float16)[..., 0].astype(np.float64)
    elif scale_dtype == "float8_e8m0fnu":
        units = np.ldexp(1.0, scales.astype(int) - 127)
    else:
        units = scales.astype(np.float64) * (tensor_scale if scale_dtype == "float8_e4m3fn" else 1)
    return np.repeat(units, size, axis=-1)


def decode(stored, scales, form, tensor_scale=1.0):
    """Rows of bytes and their scales, in float64."""
    out_dtype = FORMS[form][0] if isinstance(form, str) else form[0]
    return codes_of(stored, out_dtype) * units_of(stored, scales, form, tensor_scale)


def check_value(stored, scales, form, value, tensor_scale=1.0):
    """Scales are those of float64 values within their error, and codes are roundings by the scales that are there."""
    (out_dtype, size, scale_dtype), (y, error) = form, value
    if not y.size:  # every token was left alone
        return
    codes, unit = codes_of(stored, out_dtype), units_of(stored, scales, form, tensor_scale)
    most = ref.FORMATS["int8" if out_dtype == "q8_0" else out_dtype][2]
    magnitude = np.abs(y).reshape(*y.shape[:-1], -1, size), error.reshape(*y.shape[:-1], -1, size)
    ends = [(magnitude[0] + sign * magnitude[1]).max(-1) / most * (1 + 4 * sign * ref.U) for sign in (-1, 1)]
    least, greatest = (np.repeat(np.maximum(end, 0), size, axis=-1) for end in ends)
    if out_dtype == "q8_0":
        rounded = [np.float16(end).astype(np.float64) for end in (least, greatest)]
        assert (rounded[0] <= unit).all() and (unit <= rounded[1]).all()
        x, off = y / greatest, error / least + np.abs(y) * (1 / least - 1 / greatest) + 1e-4
        assert (np.abs(codes - x) <= 0.5 + off).all()
        return
    if scale_dtype == "float8_e8m0fnu":
        least, greatest = (np.exp2(np.ceil(np.log2(end))) for end in (least, greatest))
    elif scale_dtype == "float8_e4m3fn":
        least, greatest = (ref.round_to(end / tensor_scale, scale_dtype) * tensor_scale for end in (least, greatest))
    assert (least * (1 - ref.U) <= unit).all() and (unit <= greatest * (1 + ref.U)).all()
    x, off = ref.scaled((y, error), unit)
    good = (ref.round_to(x - off, out_dtype) <= codes) & (codes <= ref.round_to(x + off, out_dtype))
    assert good.all(), (form, codes[~good][:4], x[~good][:4])


def nearest_e2m1(x):
    """Codes; ties to the even one, larger magnitudes to 6, a NaN to 6."""
    magnitude = np.minimum(np.nan_to_num(np.abs(x), nan=9.0), 6.0)
    distance = np.abs(magnitude[..., None] - E2M1)
    tied = distance == distance.min(-1, keepdims=True)
    code = np.where(tied, np.arange(8) % 2 * 16 + np.arange(8), 99).argmin(-1)
    return (code | (np.signbit(x) & ~np.isnan(x)) * 8).astype(np.uint8)


def nearest(x, out_dtype):
    """float32 to codes, to nearest even, saturating, as rows of bytes."""
    if out_dtype == "float4_e2m1fn":
        code = nearest_e2m1(x)
        return code[..., ::2] | code[..., 1::2] << 4
    if out_dtype == "int8":
        return np.clip(np.rint(np.nan_to_num(x, nan=0.0)), -128, 127).astype(np.int8).view(np.uint8)
    most = np.float32(ref.FORMATS[out_dtype][2])
    code = np.clip(x, -most, most).astype(ref.storage(out_dtype)).view(np.uint8)
    return np.where(np.isnan(x), np.uint8(0x7F), code)


def encode_blocks(groups, out_dtype):
    """ggml's quantize_row_q8_0 and _q4_0 in words: the scale d in float32, codes by 1 / d, d stored as float16."""
    one, magnitude = np.float32(1), np.abs(groups)
    if out_dtype == "q8_0":
        d = magnitude.max(-1, keepdims=True) / np.float32(127)
    else:
        first = np.take_along_axis(groups, magnitude.argmax(-1)[..., None], -1)
        d = np.where(first == 0, np.float32(0), first) / np.float32(-8)
    x = groups * np.where(d == 0, np.float32(0), one / np.where(d == 0, one, d))
    if out_dtype == "q8_0":
        whole = np.trunc(x)
        away = whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(one, x), 0)
        codes = away.astype(np.int8).view(np.uint8)
    else:
        four = np.minimum(np.trunc(x + np.float32(8.5)), 15).astype(np.uint8)
        codes = four[..., :16] | four[..., 16:] << 4
    return np.concatenate([d.astype(np.float16).view(np.uint8), codes], -1)


def encode(x, form, tensor_scale=1.0):
    """float32 [..., d] to rows of bytes and scales (of blocks None); every step in float32, rounded as NumPy does."""
    out_dtype, size, scale_dtype = FORMS[form] if isinstance(form, str) else form
    groups = x.reshape(*x.shape[:-1], -1, size)
    if out_dtype in BLOCK_BYTES:
        blocks = encode_blocks(groups, out_dtype)
        return blocks.reshape(*x.shape[:-1], -1), None
    largest, most = np.nan_to_num(np.abs(groups), nan=0.0, posinf=np.inf).max(-1), np.float32(ref.FORMATS[out_dtype][2])
    if scale_dtype == "float32":
        scales = unit = np.where(largest > 0, largest / most, np.float32(1))
    elif scale_dtype == "float8_e8m0fnu":
        # The least power of two times `most` that reaches the largest magnitude, from 2^-127 on.
        powers = np.ldexp(np.float64(most), np.arange(-127, 128))
        scales = np.searchsorted(powers, largest.astype(np.float64)).astype(np.uint8)
        unit = np.ldexp(1.0, scales.astype(int) - 127).astype(np.float32)
    else:
        tensor_scale = np.float32(tensor_scale)
        scales = np.minimum(largest / (most * tensor_scale), np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        unit = scales.astype(np.float32) * tensor_scale
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.where(unit == 0, 0, np.minimum(np.float32(1) / unit, np.finfo(np.float32).max))
    return nearest((groups * factor[..., None]).reshape(x.shape), out_dtype), scales
