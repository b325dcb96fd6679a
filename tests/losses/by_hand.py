"""The papers' equations in plain Python loops over nested lists, independent of PyTorch and of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]
Map = Sequence[Sequence[Sequence[float]]]  # channels, rows, columns


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def softmax(z: Vector, tau: float = 1.0) -> list[float]:
    top = max(z)
    e = [math.exp((value - top) / tau) for value in z]
    return [value / sum(e) for value in e]


def kl(p: Vector, q: Vector) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def ensemble(teachers: Sequence[Vector], tau: float) -> list[float]:
    softened = [softmax(z, tau) for z in teachers]
    return [mean(column) for column in zip(*softened, strict=True)]


def kd(student: Vector, teachers: Sequence[Vector], tau: float) -> float:
    return tau**2 * kl(ensemble(teachers, tau), softmax(student, tau))


def lskd(student: Vector, teachers: Sequence[Vector], tau: float) -> float:
    def z_score(z: Vector) -> list[float]:
        center = mean(z)
        deviation = math.sqrt(mean([(value - center) ** 2 for value in z]))
        return [(value - center) / deviation for value in z]

    return kd(z_score(student), [z_score(z) for z in teachers], tau)


def dkd(student: Vector, teachers: Sequence[Vector], label: int, tau: float) -> float:
    p, q = ensemble(teachers, tau), softmax(student, tau)
    tckd = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    nontarget = [k for k in range(len(p)) if k != label]
    nckd = kl([p[k] / (1 - p[label]) for k in nontarget], [q[k] / (1 - q[label]) for k in nontarget])
    return tau**2 * (1.0 * tckd + 8.0 * nckd)


def pearson(a: Vector, b: Vector) -> float:
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    return dot(a, b) / (norm(a) * norm(b))


def dist(students: Sequence[Vector], teachers: Sequence[Sequence[Vector]], tau: float) -> list[float]:
    """Return one value per example; `teachers` is indexed by example, then by teacher."""
    student_p = [softmax(z, tau) for z in students]
    teacher_p = [ensemble(z, tau) for z in teachers]
    inter = [1 - pearson(a, b) for a, b in zip(student_p, teacher_p, strict=True)]
    columns = zip(zip(*student_p, strict=True), zip(*teacher_p, strict=True), strict=True)
    intra = mean([1 - pearson(a, b) for a, b in columns])
    return [tau**2 * (value + intra) for value in inter]


def wttm(student: Vector, teachers: Sequence[Vector], tau: float) -> float:
    powers = [value ** (1 / tau) for value in ensemble(teachers, 1.0)]
    return sum(powers) * kl([value / sum(powers) for value in powers], softmax(student))


def wsl(student: Vector, teachers: Sequence[Vector], label: int, tau: float) -> float:
    student_loss, teacher_loss = (-math.log(p[label]) for p in (softmax(student), ensemble(teachers, 1.0)))
    return (1 - math.exp(-student_loss / teacher_loss)) * kd(student, teachers, tau)


def mlkd(
    students: Sequence[Vector], teachers: Sequence[Sequence[Vector]], tau: float, *, standardized: bool
) -> list[float]:
    """Return one value per example; `teachers` is indexed by example, then by teacher."""
    instance = lskd if standardized else kd
    examples = range(len(students))
    total = [0.0] * len(students)
    for factor in (0.5, 0.75, 1.0, 1.25, 1.5):
        p = [softmax(z, factor * tau) for z in students]
        q = [ensemble(z, factor * tau) for z in teachers]
        p_columns, q_columns = list(zip(*p, strict=True)), list(zip(*q, strict=True))
        classes = range(len(p_columns))
        class_term = sum(
            (dot(p_columns[i], p_columns[j]) - dot(q_columns[i], q_columns[j])) ** 2 for i in classes for j in classes
        ) / len(p_columns)
        for i in examples:
            batch_term = sum((dot(p[i], p[j]) - dot(q[i], q[j])) ** 2 for j in examples)
            total[i] += instance(students[i], teachers[i], factor * tau) + batch_term + class_term
    return total


def adapter(m: Map, weight: Sequence[Map], means: Vector, variances: Vector) -> list[list[list[float]]]:
    """A convolution that keeps the size, and batch norm with running statistics."""
    height, width, half = len(m[0]), len(m[0][0]), len(weight[0][0]) // 2

    def value(kernel: Map, i: int, j: int) -> float:
        return sum(
            kernel[c][a][b] * m[c][i + a - half][j + b - half]
            for c in range(len(m))
            for a in range(len(kernel[0]))
            for b in range(len(kernel[0][0]))
            if 0 <= i + a - half < height and 0 <= j + b - half < width
        )

    return [
        [[(value(kernel, i, j) - m_) / math.sqrt(v + 1e-5) for j in range(width)] for i in range(height)]
        for kernel, m_, v in zip(weight, means, variances, strict=True)
    ]


def nearest(m: Map, side: int) -> list[list[list[float]]]:
    size = len(m[0])
    return [[[channel[i * size // side][j * size // side] for j in range(side)] for i in range(side)] for channel in m]


def hcl(student: Map, teacher: Map) -> float:
    """For maps of 2×2 and of 1×1, whose only coarser level is the mean."""
    total = mean([(a - b) ** 2 for a, b in zip(flat(student), flat(teacher), strict=True)])
    if len(student[0]) == 1:
        return total
    coarse = mean([(a - b) ** 2 for a, b in zip(pooled(student), pooled(teacher), strict=True)])
    return (total + 0.5 * coarse) / 1.5


def fused(m: Map, later: Map, weight: Sequence[Vector], bias: Vector) -> list[list[list[float]]]:
    """Attention-based fusion of two maps of one size."""
    output = [[[0.0] * len(m[0][0]) for _ in m[0]] for _ in m]
    for i in range(len(m[0])):
        for j in range(len(m[0][0])):
            x, y = [channel[i][j] for channel in m], [channel[i][j] for channel in later]
            own, others = (1 / (1 + math.exp(-z)) for z in linear(weight, bias, [*x, *y]))
            for c in range(len(m)):
                output[c][i][j] = own * x[c] + others * y[c]
    return output


def positions(m: Map) -> list[list[float]]:
    """Return a map's channel vectors, position by position."""
    return [[channel[i][j] for channel in m] for i in range(len(m[0])) for j in range(len(m[0][0]))]


def flat(m: Map) -> list[float]:
    return [value for channel in m for row in channel for value in row]


def pooled(m: Map) -> list[float]:
    return [mean([value for row in channel for value in row]) for channel in m]


def linear(weight: Sequence[Vector], bias: Vector | None, x: Vector) -> list[float]:
    return [dot(row, x) + (bias[k] if bias is not None else 0.0) for k, row in enumerate(weight)]


def fitnets(student: Map, teacher: Map, weight: Sequence[Vector], means: Vector, variances: Vector) -> float:
    squares = []
    for s, t in zip(positions(student), positions(teacher), strict=True):
        for a, b, m, v in zip(linear(weight, None, s), t, means, variances, strict=True):
            squares.append(((a - m) / math.sqrt(v + 1e-5) - b) ** 2)
    return mean(squares)


def at(student: Map, teacher: Map) -> float:
    def q(m: Map) -> list[float]:
        energy = [dot(v, v) for v in positions(m)]
        return [value / norm(energy) for value in energy]

    return mean([(a - b) ** 2 for a, b in zip(q(student), q(teacher), strict=True)])


def sp(student: Sequence[Map], teacher: Sequence[Map]) -> float:
    def g(maps: Sequence[Map]) -> list[list[float]]:
        rows = [[dot(flat(a), flat(b)) for b in maps] for a in maps]
        return [[value / norm(row) for value in row] for row in rows]

    b = len(student)
    difference = [x - y for r, s in zip(g(teacher), g(student), strict=True) for x, y in zip(r, s, strict=True)]
    return dot(difference, difference) / b**2


def cc(student: Sequence[Vector], teacher: Sequence[Vector], gamma: float = 0.4) -> float:
    def k(a: Vector, b: Vector) -> float:
        c = dot(a, b) / (norm(a) * norm(b))
        return math.exp(-2 * gamma) * (1 + 2 * gamma * c + (2 * gamma * c) ** 2 / 2)

    n = len(student)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    return sum((k(teacher[i], teacher[j]) - k(student[i], student[j])) ** 2 for i, j in pairs) / n**2


def vid(student: Map, teacher: Map, layers: Sequence[Sequence[Vector]], scale: Vector) -> float:
    variance = [math.log(1 + math.exp(a)) + 1e-5 for a in scale]
    terms = []
    for s, t in zip(positions(student), positions(teacher), strict=True):
        h = s
        for number, weight in enumerate(layers):
            h = linear(weight, None, h)
            if number < len(layers) - 1:
                h = [max(value, 0.0) for value in h]
        terms += [0.5 * ((a - b) ** 2 / v + math.log(v)) for a, b, v in zip(h, t, variance, strict=True)]
    return mean(terms)


def huber(x: float) -> float:
    return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


def rkd(student: Sequence[Vector], teacher: Sequence[Vector]) -> float:
    n = len(student)

    def minus(a: Vector, b: Vector) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    def distances(f: Sequence[Vector]) -> list[list[float]]:
        d = [[norm(minus(f[i], f[j])) for j in range(n)] for i in range(n)]
        mu = mean([d[i][j] for i in range(n) for j in range(n) if i != j])
        return [[value / mu for value in row] for row in d]

    def angle(f: Sequence[Vector], i: int, j: int, k: int) -> float:
        a, b = minus(f[i], f[j]), minus(f[k], f[j])
        return dot(a, b) / (norm(a) * norm(b)) if norm(a) * norm(b) > 0 else 0.0

    s, t = distances(student), distances(teacher)
    distance = sum(huber(s[i][j] - t[i][j]) for i in range(n) for j in range(n)) / n**2
    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return 25 * distance + 50 * sum(huber(angle(student, *x) - angle(teacher, *x)) for x in triplets) / n**3


def fsp(student: Sequence[Map], teacher: Sequence[Map]) -> float:
    """Return the loss for stages of equal size."""

    def g(first: Map, second: Map) -> list[float]:
        a, b = positions(first), positions(second)
        n = len(a)
        return [sum(a[p][i] * b[p][j] for p in range(n)) / n for i in range(len(a[0])) for j in range(len(b[0]))]

    total = 0.0
    for stage in range(len(student) - 1):
        pairs = zip(g(student[stage], student[stage + 1]), g(teacher[stage], teacher[stage + 1]), strict=True)
        total += mean([(a - b) ** 2 for a, b in pairs])
    return total


def pkt(student: Sequence[Vector], teacher: Sequence[Vector]) -> float:
    n = len(student)

    def p(f: Sequence[Vector]) -> list[list[float]]:
        k = [[(dot(a, b) / (norm(a) * norm(b)) + 1) / 2 for b in f] for a in f]
        return [[value / sum(row) for value in row] for row in k]

    return sum(kl(a, b) for a, b in zip(p(teacher), p(student), strict=True)) / n**2


def crd_term(anchor: Vector, positive: Vector, negatives: Sequence[Vector], z: float, images: int) -> float:
    def p(embedding: Vector) -> float:
        return math.exp(dot(anchor, embedding) / 0.07) / z

    noise = len(negatives) / images
    h = p(positive) / (p(positive) + noise)
    return -math.log(h) - sum(math.log(1 - p(negative) / (p(negative) + noise)) for negative in negatives)
