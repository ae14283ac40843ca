"""Mathematics with every step written out, by rule: what a reasoning model's own text is like, with right answers."""

from __future__ import annotations

import math
from collections.abc import Callable

from flagrelease.validate.logits.sequence import Numbers

_PROBLEMS = 3  # of one kind in a document


def worked_documents() -> list[tuple[str, str]]:
    """(name, text): two documents of each kind."""
    made = []
    for turn in range(2):
        for number, (name, kind) in enumerate(_KINDS.items()):
            numbers = Numbers(7001 + 100 * turn + number)
            problems = [f"Problem {n}. {kind(numbers)}" for n in range(1, _PROBLEMS + 1)]
            made.append((f"{name} {turn + 1}", "\n\n".join(problems) + "\n"))
    return made


def _multiply(numbers: Numbers) -> str:
    a, b = numbers.between(1000, 9999), numbers.between(100, 999)
    lines = [f"Multiply {a} by {b}. Take the digits of {b} one at a time, the last one first."]
    total = 0
    for place, digit in enumerate(reversed(str(b))):
        part = a * int(digit) * 10**place
        lines.append(
            f"The digit {digit} stands for {int(digit) * 10**place}: {a} * {digit} = {a * int(digit)}, "
            f"so this part is {part}. The sum so far is {total} + {part} = {total + part}."
        )
        total += part
    check = a * b % 9
    lines.append(f"Check by nines: {a % 9} * {b % 9} leaves {check} when divided by 9, and {total} leaves {total % 9}.")
    return "\n".join([*lines, f"The answer is {total}."])


def _divisor(numbers: Numbers) -> str:
    common = numbers.between(3, 19)
    a, b = common * numbers.between(40, 90), common * numbers.between(11, 39)
    lines = [f"Find the greatest common divisor of {a} and {b} by division with remainder."]
    x, y = a, b
    while y:
        lines.append(f"{x} = {x // y} * {y} + {x % y}" + (", so go on with the remainder." if x % y else "."))
        x, y = y, x % y
    lines.append(f"The last remainder that is not zero is {x}. Indeed {a} = {x} * {a // x} and {b} = {x} * {b // x},")
    lines.append(f"and {a // x} and {b // x} share no factor. The least common multiple is {a * b // x}.")
    return "\n".join([*lines, f"The answer is {x}."])


def _power(numbers: Numbers) -> str:
    base, exponent, modulus = numbers.between(3, 30), numbers.between(40, 200), numbers.between(51, 199)
    lines = [
        f"Find {base}^{exponent} modulo {modulus}. In binary the exponent is {exponent:b}, so square repeatedly.",
    ]
    result, square, place = 1, base % modulus, 1
    while place <= exponent:
        if exponent & place:
            lines.append(
                f"The bit of {place} is 1: {result} * {square} = {result * square}, "
                f"which leaves {result * square % modulus} when divided by {modulus}."
            )
            result = result * square % modulus
        else:
            lines.append(f"The bit of {place} is 0, the result stays {result}.")
        lines.append(f"Squaring, {square}^2 = {square**2}, which leaves {square**2 % modulus}.")
        square, place = square**2 % modulus, place * 2
    return "\n".join([*lines, f"The answer is {result}."])


def _system(numbers: Numbers) -> str:
    x, y = numbers.between(-9, 9), numbers.between(-9, 9)
    a, b, c, d = (numbers.between(2, 9) for _ in range(4))
    d += a * d == b * c  # the determinant must not be zero
    e, f = a * x + b * y, c * x + d * y
    return "\n".join(
        [
            f"Solve {a}x + {b}y = {e} and {c}x + {d}y = {f}.",
            f"Multiply the first equation by {c} and the second by {a}: both then begin with {a * c}x.",
            f"First: {a * c}x + {b * c}y = {e * c}. Second: {a * c}x + {a * d}y = {a * f}.",
            f"Subtract the first from the second: {a * d - b * c}y = {a * f - e * c}, so y = {y}.",
            f"Put y = {y} into the first equation: {a}x = {e} - {b} * ({y}) = {e - b * y}, so x = {x}.",
            f"Check with the second: {c} * ({x}) + {d} * ({y}) = {c * x} + ({d * y}) = {f}, as it should be.",
            f"The answer is x = {x}, y = {y}.",
        ]
    )


def _quadratic(numbers: Numbers) -> str:
    first, second = numbers.between(-12, 12), numbers.between(-12, 12)
    p, q = -(first + second), first * second
    inside = p * p - 4 * q
    return "\n".join(
        [
            f"Solve x^2 + ({p})x + ({q}) = 0.",
            f"The discriminant is ({p})^2 - 4 * ({q}) = {p * p} - ({4 * q}) = {inside} = {math.isqrt(inside)}^2.",
            f"So the square root is {math.isqrt(inside)}, and x = ({-p} + {math.isqrt(inside)}) / 2 or",
            f"x = ({-p} - {math.isqrt(inside)}) / 2, that is, {max(first, second)} or {min(first, second)}.",
            f"By Vieta the roots add up to {-p}: {first} + ({second}) = {first + second}. Their product must be {q}:",
            f"({first}) * ({second}) = {first * second}. Both hold.",
            f"The answer is {{{max(first, second)}, {min(first, second)}}}.",
        ]
    )


def _series(numbers: Numbers) -> str:
    first, step, count = numbers.between(2, 40), numbers.between(2, 15), numbers.between(12, 60)
    last = first + (count - 1) * step
    terms = ", ".join(str(first + n * step) for n in range(5))
    return "\n".join(
        [
            f"Add up the first {count} terms of {terms}, ...",
            f"Each term is {step} more than the one before, so term n is {first} + (n - 1) * {step}.",
            f"The last one is {first} + {count - 1} * {step} = {first} + {(count - 1) * step} = {last}.",
            f"Pair the first with the last, the second with the last but one: each pair gives {first} + {last} = "
            f"{first + last}.",
            f"There are {count} / 2 pairs, so the sum is {count} * {first + last} / 2 = {count * (first + last)} / 2.",
            f"The answer is {count * (first + last) // 2}.",
        ]
    )


def _factors(numbers: Numbers) -> str:
    n = numbers.one_of((2, 4, 8, 12)) * numbers.one_of((9, 15, 21, 25)) * numbers.between(7, 41)
    lines, rest, found, trial = [f"Factor {n} into primes and count its divisors."], n, list[int](), 2
    while rest > 1:
        if rest % trial:
            lines.append(f"{trial} does not divide {rest}.")
            trial += 1 if trial == 2 else 2
            continue
        lines.append(f"{trial} divides {rest}: {rest} = {trial} * {rest // trial}.")
        found.append(trial)
        rest //= trial
    powers = {prime: found.count(prime) for prime in dict.fromkeys(found)}
    product = " * ".join(f"{prime}^{power}" for prime, power in powers.items())
    counts = " * ".join(f"({power} + 1)" for power in powers.values())
    divisors = math.prod(power + 1 for power in powers.values())
    return "\n".join([*lines, f"So {n} = {product}, and it has {counts} = {divisors} divisors."])


def _fractions(numbers: Numbers) -> str:
    a, b, c, d = (numbers.between(2, 30) for _ in range(4))
    common = math.lcm(b, d)
    top = a * (common // b) + c * (common // d)
    shared = math.gcd(top, common)
    return "\n".join(
        [
            f"Add {a}/{b} and {c}/{d}.",
            f"The least common multiple of {b} and {d} is {common}.",
            f"{a}/{b} = {a} * {common // b} / {common} = {a * (common // b)}/{common}.",
            f"{c}/{d} = {c} * {common // d} / {common} = {c * (common // d)}/{common}.",
            f"The sum is {top}/{common}. Numerator and denominator share the factor {shared}.",
            f"As a decimal it is about {top / common:.4f}: {a / b:.4f} + {c / d:.4f}.",
            f"The answer is {top // shared}/{common // shared}.",
        ]
    )


_KINDS: dict[str, Callable[[Numbers], str]] = {
    "multiplication": _multiply,
    "greatest common divisors": _divisor,
    "modular powers": _power,
    "linear equations": _system,
    "quadratic equations": _quadratic,
    "arithmetic series": _series,
    "prime factors": _factors,
    "fractions": _fractions,
}
