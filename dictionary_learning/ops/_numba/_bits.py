"""Comparisons of 32 numbers with one at once, whose results are the bits of an integer.

Numba compares number by number where what follows depends on each result, but nearly all
pre-activations are below their bound: one look at 32 of them is enough.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dictionary_learning.ops._numba._compile import compiled

BLOCK = 32
_INDEX = ir.IntType(32)


@intrinsic
def _above_in_block(typing, row, begin, bound):
    """Returns which of row[begin : begin + 32] are above a bound; all of these must be there."""

    def generate(context, builder, signature, arguments):
        row, begin, bound = arguments
        kind = signature.args[0]
        lane = context.get_value_type(kind.dtype)
        block = ir.VectorType(lane, BLOCK)
        start = builder.gep(context.make_array(kind)(context, builder, row).data, [begin])
        numbers = builder.load(builder.bitcast(start, block.as_pointer()), align=lane.width // 8)
        first = builder.insert_element(ir.Constant(block, ir.Undefined), bound, _INDEX(0))
        bounds = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INDEX, BLOCK), [0] * BLOCK))
        found = builder.bitcast(builder.icmp_signed(">", numbers, bounds), ir.IntType(BLOCK))
        return builder.zext(found, ir.IntType(64))

    return types.int64(row, types.intp, row.dtype), generate


@intrinsic
def _n_set(typing, bits):
    """Returns how many bits are set."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: builder.ctpop(*arguments)


@intrinsic
def lowest(typing, bits):
    """Returns the place of the lowest bit that is set; one must be."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(*arguments, ir.IntType(1)(1))

    return types.int64(types.int64), generate


@compiled
def above(row, begin, bound):
    """Returns which numbers of a block are above a bound; the last block may have fewer."""
    if begin + BLOCK <= row.shape[0]:
        return _above_in_block(row, begin, bound)
    found = 0
    for j in range(begin, row.shape[0]):
        found |= int(row[j] > bound) << (j - begin)
    return found


@compiled
def n_above(row, bound):
    """Returns how many numbers are above a bound."""
    count = 0
    for begin in range(0, row.shape[0], BLOCK):
        count += _n_set(above(row, begin, bound))
    return count


@compiled
def kth_largest(row, k, low, enough):
    """Returns a number that `k` to `enough` of a row reach, if there is one with `low` zero bits.

    Else the largest with so many zero bits that k reach; 0 where fewer than k are positive. It is
    found bit by bit, without a branch that depends on single numbers.
    """
    found = 0
    for bit in range(8 * row.itemsize - 2, low - 1, -1):
        tried = found | 1 << bit
        count = n_above(row, tried - 1)
        if count >= k:
            found = tried
            if count <= enough:
                break
    return found
