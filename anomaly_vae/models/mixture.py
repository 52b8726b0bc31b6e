r"""A latent class mixture: the autoencoder's sibling whose code is one of K classes.

.. math::
    p(x) = \sum_{j=1}^K \pi_j\, \mathcal N(x_C; \mu_j, \Sigma_j) \prod_{c \notin C} p(x_c \mid j)

C are the continuous columns, with a full covariance in each class; the others are independent given the class, with
the likelihoods that the autoencoder uses for them. The code is discrete, so its posterior p(j|x) is known, the ELBO is
log p(x) itself, and nothing is sampled. Where columns depend on each other linearly, and differently in different
regions, a few full covariances say it more sharply than a decoder with independent noise.

Missing cells are marginalised exactly, in the density and in the fit (`models.expectation`).

Shapes: n rows, m columns, K classes, c continuous columns.

References:
    Little & Rubin (2019), Statistical Analysis with Missing Data, section 14 (the general location model).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..data.schema import Column
from .bounds import HALF_LOG_2PI
from .expectation import Expectation
from .likelihoods import TableLikelihood
from .threads import threads_worth

MOST_ROWS = 20_000
"""Rows that a fit looks at, drawn from more."""
BLOCK = 256
"""Rows computed at once; the last block is padded, so that a row's density does not depend on its company."""
MATRIX_CELLS = 1 << 20
"""Cells of the matrices of incomplete rows held at once, at most."""
WIDE = torch.float64
"""Everything is computed in double precision: covariances of nearly dependent columns need it."""
COUNTS = "zero_inflated"
REACH = 4.0
"""A column's own density is that of cells within so many standard deviations of some class's mean; farther ones count
as if they were there."""
LEAST = -20.0
"""Log density of other kinds of cells by themselves, at least, nats."""


class Bend(nn.Module):
    r"""A robust inverse hyperbolic sine of each column: linear around the median, logarithmic in the tails.

    .. math:: y = (\operatorname{arsinh}((x - a) / b) - s) / t

    with a the median, b the interquartile range in units of a normal's, s and t standardising the result.

    References:
        Burbidge, Magee & Robb (1988), Alternative transformations to handle extreme values of the dependent variable.
    """

    constants: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        start = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=WIDE).repeat(1, width)
        self.register_buffer("constants", start)

    def fit(self, x: Tensor) -> None:
        """Take the constants from rows (n, c), NaN = missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column without a cell has no quartiles: those of 0
            quartiles = np.nanquantile(x.numpy(), [0.25, 0.5, 0.75], axis=0)  # PyTorch's takes 2^24 cells at most
        low, a, high = torch.from_numpy(quartiles).nan_to_num(0.0)
        b = (high - low) / 1.349
        b = torch.where(b > 1e-3, b, 1.0)  # half of the cells agree: the column's own unit
        y = ((x - a) / b).asinh()
        s = y.nanmean(0).nan_to_num(0.0)
        t = (y - s).square().nanmean(0).sqrt()
        self.constants = torch.stack([a, b, s, torch.where(t > 1e-3, t, 1.0)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |dy/dx|, each (n, c)."""
        a, b, s, t = self.constants
        u = (x - a) / b
        return (u.asinh() - s) / t, -(0.5 * u.square().log1p() + b.log() + t.log())


class ClassMixture(nn.Module):
    """A mixture of K classes over the columns of a table.

    Args:
        columns: The m modelled columns.
        classes: K.
        bent: Whether continuous columns are seen on the scale of `Bend`, where skewed and heavy-tailed columns are
            closer to normal; the density stays that of the cells themselves.

    Attributes:
        log_weights: log of the classes' shares, (K,).
        means: Of the continuous columns, standardised, (K, c).
        covariances: (K, c, c).
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor
    heads: Tensor
    log_scale: Tensor

    def __init__(self, columns: Sequence[Column], classes: int, *, bent: bool = False) -> None:
        super().__init__()
        self.classes = classes
        self.bent = bent
        self.joint = [j for j, column in enumerate(columns) if column.kind == "continuous"]
        self.single = [j for j, column in enumerate(columns) if column.kind != "continuous"]
        c = len(self.joint)
        self.bend = Bend(c) if bent else None
        scales = torch.tensor([columns[j].scale for j in self.joint], dtype=WIDE)
        self.register_buffer("log_scale", scales.log(), persistent=False)
        self.register_buffer("log_weights", torch.full((classes,), -math.log(classes), dtype=WIDE))
        self.register_buffer("means", torch.zeros(classes, c, dtype=WIDE))
        self.register_buffer("covariances", torch.eye(c, dtype=WIDE).repeat(classes, 1, 1))
        self.likelihood: TableLikelihood | None = None
        if self.single:
            self.likelihood = TableLikelihood([columns[j] for j in self.single], counts=COUNTS).double()
        self.register_buffer(
            "heads", torch.zeros(classes, 1, self.likelihood.width if self.likelihood else 0, dtype=WIDE)
        )
        counts = sum(columns[j].kind == "count" for j in self.single)
        if self.likelihood is not None and counts:
            # a noise level for each class; the autoencoder has one for all codes
            noise = nn.Parameter(torch.zeros(classes, 1, counts, dtype=WIDE), requires_grad=False)
            self.likelihood.heads[COUNTS].noise_log = noise
        self.columns = list(columns)
        self._factors: tuple[Tensor, Tensor, Tensor] | None = None

    # -- density ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of encoded rows (n, m), NaN = missing, in nats of the user's units, (n,), float64."""
        out = torch.empty(len(x), dtype=WIDE)
        for rows, block in self._blocks(x):
            out[rows] = torch.logsumexp(self._joint_log_density(block), 0)[: rows.stop - rows.start]
        return out

    @torch.no_grad()
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Split -log p(x) into the columns' parts and a remainder.

        Parts are averaged over the classes that the row may be of. In a normal class, with d the row less the class's
        mean and P the inverse covariance, column c has :math:`\tfrac12 d_c (P d)_c + \tfrac12 \log(2 \pi / P_{cc})`.
        The first terms add up to half the squared Mahalanobis distance, and a cell that alone is far off has nearly all
        of it; the second is the level of a cell that the others predict perfectly. The remainder makes the sum exact:
        what the columns tell of each other on average, and what the class costs. It does not grow with the distance.

        Args:
            x: Encoded rows, (n, m).

        Returns:
            Parts (n, m), 0 where missing, and remainders (n,), float64, nats.
        """
        parts, remainder = torch.zeros(x.shape, dtype=WIDE), torch.empty(len(x), dtype=WIDE)
        for rows, block in self._blocks(x):
            joint = self._joint_log_density(block)
            log_density = torch.logsumexp(joint, 0)
            share = (joint - log_density).exp()
            part = torch.zeros(block.shape, dtype=WIDE)
            if self.joint:
                cells, log_slope = self.seen(block)
                part[:, self.joint] = (share[..., None] * self._column_costs(cells)).sum(0) - log_slope
            if self.single:
                part[:, self.single] = -(share[..., None] * self._single_log_density(block)).sum(0)
            kept = slice(0, rows.stop - rows.start)
            parts[rows] = part[kept]
            remainder[rows] = (-log_density - part.sum(1))[kept]
        return parts, remainder

    @torch.no_grad()
    def marginals(self, x: Tensor) -> Tensor:
        """Return log p(x_c) of each column by itself, nats, (n, m), float64, 0 where missing, of encoded rows (n, m).

        It is bounded below (`REACH`, `LEAST`), so that what is taken off a score never outweighs an absurd cell, and of
        continuous cells on the scale of the fit, so that it does not depend on their units.
        """
        out = torch.zeros(x.shape, dtype=WIDE)
        for rows, block in self._blocks(x):
            found = torch.zeros(block.shape, dtype=WIDE)
            if self.joint:
                cells = self.seen(block)[0].clamp(*self.reach())
                variances = self.covariances.diagonal(dim1=-2, dim2=-1)[:, None]
                of_class = -0.5 * ((cells - self.means[:, None]).square() / variances + variances.log()) - HALF_LOG_2PI
                found[:, self.joint] = torch.logsumexp(self.log_weights[:, None, None] + of_class, 0)
            if self.single:
                of_class = self._single_log_density(block)
                alone = torch.logsumexp(self.log_weights[:, None, None] + of_class, 0)
                found[:, self.single] = alone.clamp(min=LEAST)
            out[rows] = found.masked_fill(block.isnan(), 0.0)[: rows.stop - rows.start]
        return out

    def reach(self) -> tuple[Tensor, Tensor]:
        """Return the ends of what the continuous columns reach, on the scale of the fit, each (c,)."""
        far = REACH * self.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        return (self.means - far).amin(0), (self.means + far).amax(0)

    def _blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        with threads_worth(0):
            for start in range(0, len(x), BLOCK):
                block = x[start : start + BLOCK].double()
                rows = slice(start, start + len(block))
                if len(block) < BLOCK:
                    block = torch.cat([block, block.new_zeros(BLOCK - len(block), x.shape[1])])
                yield rows, block

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return continuous cells as fitted and log |d fitted / d user's cell|, 0 where missing, each (n, c)."""
        cells = x[:, self.joint]
        seen, log_slope = (cells, torch.zeros_like(cells)) if self.bend is None else self.bend(cells)
        return seen, (log_slope - self.log_scale).masked_fill(cells.isnan(), 0.0)

    def _joint_log_density(self, x: Tensor) -> Tensor:
        """Return log pi_j + log p(x|j), (K, n)."""
        out = self.log_weights[:, None].expand(-1, len(x))
        if self.joint:
            cells, log_slope = self.seen(x)
            out = out + self._normal_log_density(cells) + log_slope.sum(-1)
        return out + self._single_log_density(x).sum(-1) if self.single else out

    def _single_log_density(self, x: Tensor) -> Tensor:
        """Return log p(x_c|j) of the columns outside C, (K, n, m - c)."""
        assert self.likelihood is not None
        return self.likelihood.log_prob(self.heads, x[:, self.single])

    def whitening(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what makes each class's cells white.

        Returns:
            W with W' W = inverse covariance, (K, c, c), W times the means, (K, c), and W's log determinants, (K,).
        """
        if self._factors is None:
            factor = torch.linalg.cholesky(self.covariances)
            inverse = torch.linalg.solve_triangular(factor, torch.eye(len(self.joint), dtype=WIDE), upper=False)
            log_determinants = -factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            self._factors = inverse, (inverse @ self.means[..., None])[..., 0], log_determinants
        return self._factors

    def _normal_log_density(self, x: Tensor) -> Tensor:
        """Return log N(x; mu_j, Sigma_j) of the observed cells of rows (n, c), (K, n), on the scale of the fit."""
        missing = x.isnan()
        inverse, means, log_determinant = self.whitening()
        white = x.nan_to_num(0.0) @ inverse.mT - means[:, None]
        out = log_determinant[:, None] - 0.5 * white.square().sum(-1)
        for rows in self.incomplete(missing):
            out[:, rows] = self.observed_log_density(x[rows], missing[rows])
        return out - HALF_LOG_2PI * (~missing).to(x.dtype).sum(-1)

    def incomplete(self, missing: Tensor) -> Iterator[Tensor]:
        """Yield the rows with missing cells, in parts whose matrices fit into memory."""
        rows = missing.any(1).nonzero()[:, 0]
        step = max(1, MATRIX_CELLS // max(1, missing.shape[1]) ** 2)
        return (rows[i : i + step] for i in range(0, len(rows), step))

    def _observed_covariance(self, covariance: Tensor, missing: Tensor) -> Tensor:
        """Return each row's covariance, (b, c, c), with missing columns made independent of variance 1."""
        seen = (~missing).double()
        return covariance * (seen[:, :, None] * seen[:, None, :]) + torch.diag_embed(1.0 - seen)

    def observed_log_density(self, x: Tensor, missing: Tensor) -> Tensor:
        """Return the marginal log densities of rows with gaps, standardised and without constants, (K, b)."""
        out = []
        for mean, covariance in zip(self.means, self.covariances, strict=True):
            factor = torch.linalg.cholesky(self._observed_covariance(covariance, missing))
            off = (x - mean).masked_fill(missing, 0.0)
            white = torch.linalg.solve_triangular(factor, off[..., None], upper=False)[..., 0]
            out.append(-0.5 * white.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))
        return torch.stack(out)

    def _column_costs(self, x: Tensor) -> Tensor:
        """Return each continuous column's part of -log N(x; mu_j, Sigma_j), see `split`, (K, n, c), 0 where missing."""
        missing = x.isnan()
        off = (x - self.means[:, None]).masked_fill(missing, 0.0)
        precision = torch.linalg.inv(self.covariances)
        pulled = off @ precision
        variance = precision.diagonal(dim1=-2, dim2=-1).reciprocal()[:, None].repeat(1, len(x), 1)
        for rows in self.incomplete(missing):
            for j, covariance in enumerate(self.covariances):
                own = torch.linalg.inv(self._observed_covariance(covariance, missing[rows]))
                pulled[j, rows] = (own @ off[j, rows][..., None])[..., 0]
                variance[j, rows] = own.diagonal(dim1=-2, dim2=-1).reciprocal()
        nats = 0.5 * off * pulled + 0.5 * variance.log() + HALF_LOG_2PI
        return nats.masked_fill(missing, 0.0)

    # -- fit --------------------------------------------------------------------------------------------------------

    @classmethod
    @torch.no_grad()
    def fitted(
        cls,
        columns: Sequence[Column],
        x: Tensor,
        *,
        classes: int,
        seed: int,
        bent: bool = False,
        weights: Tensor | None = None,
        power: float = 1.0,
    ) -> ClassMixture:
        """Fit by expectation-maximisation from a k-means start.

        Args:
            columns: The m modelled columns.
            x: Encoded rows, (n, m), NaN = missing.
            classes: K at most; fewer where the rows are too few for so many covariances, 2 m + 10 a class.
            seed: Of the start and of the draw from more than `MOST_ROWS` rows.
            bent: See the class.
            weights: Weight of each row, (n,).
            power: Power that the classes' shares are raised to after the fit, to add up to 1 again. With the shares as
                fitted a cluster of anomalies among the rows is a class like any other; above 1 rows of small classes
                are less probable.
        """
        generator = torch.Generator().manual_seed(seed)
        if weights is not None:
            x, weights = x[weights > 0], weights[weights > 0]
        if len(x) > MOST_ROWS:
            kept = torch.randperm(len(x), generator=generator)[:MOST_ROWS].sort().values
            x, weights = x[kept], None if weights is None else weights[kept]
        classes = min(classes, max(1, len(x) // (2 * x.shape[1] + 10)))
        model = cls(columns, classes, bent=bent)
        weight = torch.ones(len(x), dtype=WIDE) if weights is None else weights.double() / weights.double().mean()
        x = x.double()
        if model.bend is not None:
            model.bend.fit(x[:, model.joint])
        with threads_worth(0):
            Expectation(model, x, weight).run(seed)
        model.log_weights = torch.log_softmax(power * model.log_weights, 0)
        return model
