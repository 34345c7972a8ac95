"""The 18 problems of unconstrained minimisation of Moré, Garbow and Hillstrom, as sums of squares of residuals.

Source: Moré, Garbow and Hillstrom, "Testing Unconstrained Optimization Software", 1981, section 3; problems that take
any number of variables have one of the numbers given there.
"""

import numpy as np

#: The length of an imaginary step: its square is 0, so that the derivative has no error but rounding.
STEP = 1e-200


def squares(residuals):
    """Return the function that gives Σrᵢ² and its gradient, 2Jᵀr; J by imaginary steps (Squire and Trapp, 1998)."""

    def loss_and_grad(x):
        x = np.asarray(x, float)
        with np.errstate(all="ignore"):
            r = residuals(x)
            rows = [residuals(x + 1j * STEP * unit).imag / STEP for unit in np.eye(x.size)]
            return float((r * r).sum()), 2 * np.array(rows) @ r

    return loss_and_grad


def helical_valley(x):
    angle = np.arctan(x[1] / x[0]) / (2 * np.pi) + (0.5 if x[0].real < 0 else 0.0)
    return np.array([10 * (x[2] - 10 * angle), 10 * (np.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2]])


def biggs_exp6(x):
    t = 0.1 * np.arange(1, 14)
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return x[2] * np.exp(-t * x[0]) - x[3] * np.exp(-t * x[1]) + x[5] * np.exp(-t * x[4]) - y


def gaussian(x):
    y = np.array([9, 44, 175, 540, 1295, 2420, 3521, 3989, 3521, 2420, 1295, 540, 175, 44, 9]) / 1e4
    t = (8 - np.arange(1, 16)) / 2
    return x[0] * np.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


def powell_badly_scaled(x):
    return np.array([1e4 * x[0] * x[1] - 1, np.exp(-x[0]) + np.exp(-x[1]) - 1.0001])


def box(x):
    t = 0.1 * np.arange(1, 11)
    return np.exp(-t * x[0]) - np.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def variably_dimensioned(x):
    total = (np.arange(1, x.size + 1) * (x - 1)).sum()
    return np.array([*(x - 1), total, total**2])


def watson(x):
    t, j = np.arange(1, 30)[:, None] / 29, np.arange(x.size)
    r = (j[1:] * x[1:] * t ** (j[1:] - 1)).sum(1) - (x * t**j).sum(1) ** 2 - 1
    return np.array([*r, x[0], x[1] - x[0] ** 2 - 1])


def penalty_1(x):
    return np.array([*(np.sqrt(1e-5) * (x - 1)), (x * x).sum() - 0.25])


def penalty_2(x):
    n, a = x.size, np.sqrt(1e-5)
    i = np.arange(2, n + 1)
    pairs = a * (np.exp(x[1:] / 10) + np.exp(x[:-1] / 10) - np.exp(i / 10) - np.exp((i - 1) / 10))
    return np.array(
        [x[0] - 0.2, *pairs, *(a * (np.exp(x[1:] / 10) - np.exp(-0.1))), (np.arange(n, 0, -1) * x * x).sum() - 1]
    )


def brown_badly_scaled(x):
    return np.array([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def brown_and_dennis(x):
    t = np.arange(1, 21) / 5
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


def gulf(x):
    t = np.arange(1, 100) / 100
    distance = 25 + (-50 * np.log(t)) ** (2 / 3) - x[1]
    distance = np.where(distance.real < 0, -distance, distance)
    return np.exp(-(distance ** x[2]) / x[0]) - t


def trigonometric(x):
    i = np.arange(1, x.size + 1)
    return x.size - np.cos(x).sum() + i * (1 - np.cos(x)) - np.sin(x)


def rosenbrock(x):
    return np.concatenate([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def powell_singular(x):
    a, b, c, d = x.reshape(-1, 4).T
    return np.concatenate([a + 10 * b, np.sqrt(5) * (c - d), (b - 2 * c) ** 2, np.sqrt(10) * (a - d) ** 2])


def beale(x):
    return np.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** np.arange(1, 4))


def wood(x):
    a, b, c, d = x
    return np.array(
        [
            10 * (b - a * a),
            1 - a,
            np.sqrt(90) * (d - c * c),
            1 - c,
            np.sqrt(10) * (b + d - 2),
            (b - d) / np.sqrt(10),
        ]
    )


def chebyquad(x):
    """Means of the shifted Chebyshev polynomials 1 to n, less their integrals."""
    z, rows = 2 * x - 1, []
    before, now = np.ones_like(x), z
    for i in range(1, x.size + 1):
        rows.append(now.mean() + (0 if i % 2 else 1 / (i * i - 1)))
        before, now = now, 2 * z * now - before
    return np.array(rows)


#: Name → residuals, the standard start, and the lowest values known: the global one, then local ones.
PROBLEMS = {
    "helical valley": (helical_valley, [-1.0, 0.0, 0.0], (0.0,)),
    "Biggs EXP6": (biggs_exp6, [1.0, 2.0, 1.0, 1.0, 1.0, 1.0], (0.0, 5.65565e-3)),
    "Gaussian": (gaussian, [0.4, 1.0, 0.0], (1.12793e-8,)),
    "Powell badly scaled": (powell_badly_scaled, [0.0, 1.0], (0.0,)),
    "Box, n = 3": (box, [0.0, 10.0, 20.0], (0.0,)),
    "variably dimensioned, n = 10": (variably_dimensioned, 1 - np.arange(1, 11) / 10, (0.0,)),
    "Watson, n = 6": (watson, np.zeros(6), (2.28767e-3,)),
    "penalty I, n = 10": (penalty_1, np.arange(1.0, 11.0), (7.08765e-5,)),
    "penalty II, n = 10": (penalty_2, np.full(10, 0.5), (2.93660e-4,)),
    "Brown badly scaled": (brown_badly_scaled, [1.0, 1.0], (0.0,)),
    "Brown and Dennis": (brown_and_dennis, [25.0, 5.0, -5.0, -1.0], (85822.2,)),
    "Gulf": (gulf, [5.0, 2.5, 0.15], (0.0,)),
    "trigonometric, n = 10": (trigonometric, np.full(10, 0.1), (0.0, 2.79506e-5)),
    "extended Rosenbrock, n = 10": (rosenbrock, np.tile([-1.2, 1.0], 5), (0.0,)),
    "extended Powell singular, n = 8": (powell_singular, np.tile([3.0, -1.0, 0.0, 1.0], 2), (0.0,)),
    "Beale": (beale, [1.0, 1.0], (0.0,)),
    "Wood": (wood, [-3.0, -1.0, -3.0, -1.0], (0.0,)),
    "Chebyquad, n = 8": (chebyquad, np.arange(1, 9) / 9, (3.51687e-3,)),
}
