"""Machine code for the look-up loops, built with llvmlite: the part of numba that compiles.

numba itself takes a second to load and to compile these loops, in every process; LLVM alone takes 60 ms. What a loop
does is written here as LLVM's instructions, and its result is compared with numpy's in tests/unit/test_formats.py.

Both loops go over a matrix of bytes whose blocks have a table each. Blocks of FP4 are 16 bytes wide: with that width
as a constant, LLVM unrolls the innermost loop, which is three times as fast as with a width that it does not know.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir

from flagrelease.once import once

_TABLE_ENTRIES = 256
_I64 = ir.IntType(64)
_C_TYPES = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 5]

# (codes, index, entries, out, rows, columns, rows of a block, columns of a block, blocks in a row) -> a sum
Loop = Callable[..., int]


@once
def compiled(index_bits: int, entry_bits: int, block_columns: int | None, summing: bool) -> Loop:
    """A loop over a matrix of codes. Calling it releases the interpreter lock.

    Args:
        index_bits: of the number of a block's table.
        entry_bits: of an entry of a table; a table has 256.
        block_columns: bytes of a block's row; None: not known before the call.
        summing: add the entries up instead of writing them to `out`.

    Returns:
        A function of addresses of `codes` [rows, columns], `index`, `entries` and `out`, and of five numbers. All
        arrays are contiguous. It returns the sum of the entries, or 0.
    """
    module = ir.Module()
    pointers = [ir.IntType(bits).as_pointer() for bits in (8, index_bits, entry_bits, entry_bits)]
    function = ir.Function(module, ir.FunctionType(_I64, [*pointers, *[_I64] * 5]), "loop")
    for pointer in function.args[:4]:
        pointer.add_attribute("noalias")
    _write_body(function, block_columns, summing)
    engine = _engine(str(module))
    loop: Any = ctypes.CFUNCTYPE(ctypes.c_int64, *_C_TYPES)(engine.get_function_address("loop"))
    loop.engine = engine  # the code lives as long as its engine
    return loop  # type: ignore[no-any-return]


def _write_body(function: ir.Function, block_columns: int | None, summing: bool) -> None:
    codes, index, entries, out, rows, columns, block_rows, given, blocks = function.args
    build = ir.IRBuilder(function.append_basic_block())
    width = given if block_columns is None else _I64(block_columns)
    total = build.alloca(_I64)
    build.store(_I64(0), total)
    whole_blocks = build.sdiv(columns, width)
    with _each(build, rows) as row:
        row_begin = build.mul(row, columns)
        index_begin = build.mul(build.sdiv(row, block_rows), blocks)

        def block(number: ir.Value, count: ir.Value) -> None:
            """Look up `count` bytes of the row's block `number`."""
            chosen = build.zext(build.load(build.gep(index, [build.add(index_begin, number)])), _I64)
            table = build.gep(entries, [build.mul(chosen, _I64(_TABLE_ENTRIES))])
            begin = build.add(row_begin, build.mul(number, width))
            with _each(build, count) as column:
                place = build.add(begin, column)
                code = build.zext(build.load(build.gep(codes, [place])), _I64)
                entry = build.load(build.gep(table, [code]))
                if summing:
                    build.store(build.add(build.load(total), build.zext(entry, _I64)), total)
                else:
                    build.store(entry, build.gep(out, [place]))

        with _each(build, whole_blocks) as number:
            block(number, width)
        rest = build.srem(columns, width)
        with build.if_then(build.icmp_signed(">", rest, _I64(0))):
            block(whole_blocks, rest)
    build.ret(build.load(total))


@contextmanager
def _each(build: ir.IRBuilder, count: ir.Value) -> Iterator[ir.Value]:
    """A loop from 0 to `count` - 1 around what the caller builds."""
    before, body, behind = build.block, build.append_basic_block(), build.append_basic_block()
    build.cbranch(build.icmp_signed(">", count, _I64(0)), body, behind)
    build.position_at_end(body)
    number = build.phi(_I64)
    number.add_incoming(_I64(0), before)
    yield number
    following = build.add(number, _I64(1))
    number.add_incoming(following, build.block)
    build.cbranch(build.icmp_signed("<", following, count), body, behind)
    build.position_at_end(behind)


def _engine(text: str) -> Any:
    """LLVM's optimised code for a module, for this processor."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = binding.parse_assembly(text)
    features = binding.get_host_cpu_features().flatten()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=2
    )
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = tuning.slp_vectorization = True
    tuning.loop_vectorization = False  # it would gather: twice the time of loads, and twice as long to compile
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
