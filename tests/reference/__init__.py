"""The readable specification: float64 formulas written from the papers, sharing no code with the kernels.

``rules`` has one update rule a function, ``norms`` the normalisations and norms, ``tree`` the canonical summation.
"""
