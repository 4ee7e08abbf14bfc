"""The names that a pickle of tensors may use, and plain records of what they build, without PyTorch."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# PyTorch's dtypes and the bytes of an element; those without a storage class come last.
STORAGES = {
    **{'FloatStorage': ('float32', 4), 'HalfStorage': ('float16', 2), 'BFloat16Storage': ('bfloat16', 2)},
    **{'DoubleStorage': ('float64', 8), 'LongStorage': ('int64', 8), 'IntStorage': ('int32', 4)},
    **{'ShortStorage': ('int16', 2), 'CharStorage': ('int8', 1), 'ByteStorage': ('uint8', 1)},
    **{'BoolStorage': ('bool', 1), 'UntypedStorage': ('uint8', 1)},
    **{'ComplexFloatStorage': ('complex64', 8), 'ComplexDoubleStorage': ('complex128', 16)},
}
ITEM_SIZES = {
    **dict(STORAGES.values()),
    **{'uint16': 2, 'uint32': 4, 'uint64': 8, 'complex32': 4, 'float4_e2m1fn_x2': 1},
    **{f'float8_{suffix}': 1 for suffix in ('e4m3fn', 'e4m3fnuz', 'e5m2', 'e5m2fnuz', 'e8m0fnu')},
}
UNSUPPORTED = (
    (r'torch\._utils\._rebuild_qtensor|torch\.Q\w+Storage', 'quantized tensors'),
    (r'torch\._utils\._rebuild_sparse_(csr_)?tensor', 'sparse tensors'),
    (r'torch\._utils\._rebuild_nested_tensor', 'nested tensors'),
    (r'torch\._utils\._rebuild_meta_tensor_no_storage', 'tensors without data, on the meta device'),
    (r'torch\._utils\._rebuild_wrapper_subclass', 'tensors of a class other than torch.Tensor'),
    (r'torch\._tensor\._rebuild_from_type(_v2)?', 'tensors with attributes or of another class'),
    (r'torch\.(bits|u?int)\d\w*', 'tensors of an unsupported type'),
)


class Refused(ValueError):
    """A pickle that may be intact, but contains something that is not supported or not safe."""


@dataclass(slots=True, eq=False)
class Compound:
    """A tuple, list, dict or OrderedDict of a pickle; `fixed` once it is part of another."""

    type: str
    parts: Any = field(repr=False)
    depth: int = 1
    fixed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """An allowed global name in a pickle; it is never imported."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A storage as described in a pickle."""

    key: str
    dtype: str
    itemsize: int
    length: int  # in elements


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor as described in a pickle, not yet checked to lie within its storage."""

    storage: Storage
    dtype: str
    offset: int  # in elements, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def type_of(value: Any) -> str:
    """A short description of the type of a pickle's value, for messages."""
    if isinstance(value, Compound):
        return value.type
    if isinstance(value, Global):
        return value.name
    named = {View: 'a tensor', Storage: 'a storage', type(None): 'None'}
    return named.get(type(value), type(value).__name__)


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def allowed(name: str) -> Global:
    """A global name that a pickle of tensors may use; raises Refused for any other."""
    parent, _, last = name.rpartition('.')
    if (
        name in CONSTRUCTORS
        or (parent == 'torch' and (last in STORAGES or last in ITEM_SIZES))
        or name == 'torch.storage.UntypedStorage'
    ):
        return Global(name)
    for pattern, description in UNSUPPORTED:
        if re.fullmatch(pattern, name):
            raise Refused(
                f'holds {description} ({name}), which are not supported; '
                'save a state_dict of plain float32, float16 or bfloat16 tensors'
            )
    raise Refused(
        f'refuses {name[:200]}, which no tensor needs and which could run code; '
        'get the checkpoint as safetensors, or from someone you trust'
    )


def _ordered_dict(*args: Any) -> Compound:
    if args:
        raise ValueError('an OrderedDict with arguments')
    return Compound('OrderedDict', {})


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None
) -> View:
    """torch._utils._rebuild_tensor_v2; its arguments for gradients and hooks are ignored."""
    _refuse_metadata(metadata)
    if not isinstance(storage, Storage):
        raise ValueError(f'expected the storage of a tensor, found {type_of(storage)}')
    return _view(storage, storage.dtype, offset, shape, strides)


def _tensor_of_type(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> View:
    """torch._utils._rebuild_tensor_v3, for the types that have no storage class; the length is in bytes."""
    _refuse_metadata(metadata)
    if not isinstance(storage, Storage) or storage.itemsize != 1:
        raise ValueError(f'expected the untyped storage of a tensor, found {type_of(storage)}')
    name = dtype.name.removeprefix('torch.') if isinstance(dtype, Global) else ''
    if name not in ITEM_SIZES:
        raise ValueError(f'expected the dtype of a tensor, found {type_of(dtype)}')
    return _view(storage, name, offset, shape, strides)


def _refuse_metadata(metadata: Any) -> None:
    """The metadata of a tensor says that its values are those of the storage negated or conjugated."""
    if isinstance(metadata, Compound) and metadata.parts:
        raise Refused(
            'holds a tensor whose values are not those of its storage, but negated or conjugated; save what '
            'its resolve_neg() or resolve_conj() returns'
        )


def _view(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> View:
    sizes = []
    for value in (shape, strides):
        if not isinstance(value, Compound) or value.type != 'tuple' or len(value.parts) > 64:
            raise ValueError(f'expected a tuple as the shape or strides of a tensor, found {type_of(value)}')
        sizes.append(value.parts)
    if len(sizes[0]) != len(sizes[1]) or not all(map(is_size, (offset, *sizes[0], *sizes[1]))):
        raise ValueError('the offset, shape and strides of a tensor are invalid')
    return View(storage, dtype, offset, *sizes)


def _parameter(tensor: Any, *_: Any) -> View:
    if not isinstance(tensor, View):
        raise ValueError(f'expected the tensor of a parameter, found {type_of(tensor)}')
    return tensor


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': _ordered_dict,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_type,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
}
