"""What the commands print of how far a carried SAE, probe or vector is to be trusted (no section of its own).

The measures that separate a good stitch from a bad one come first: token by token, the same latents, answers or
changes of predictions as in the source model, compared with what nulls reach. Cosines after mapping there and back
come last, since maps that undo each other give high ones to any direction.

Offers `say_sae`, `say_probe`, `say_vectors`, `say_survival`.
"""

from collections.abc import Sequence

from ..probing.probes import ProbeTrust
from ..saes.evaluation import SAETrust
from ..steering.effects import STRENGTH, VectorTrust
from ..stitching.evaluation import Survival
from ..stitching.nulls import DRAWS
from ..utils.stats import Beyond, Estimate

NULLS = "they take principal components to those of the same rank, with random signs, and pair no tokens"


def say_sae(trust: SAETrust, source: str, target: str) -> None:
    """Print how the SAE that was carried from the model called `source` to `target` does."""
    print(f"of the latents that fire on a token in either SAE, {_share(trust.over_null.value)} fire in both")
    _say_more("  ", trust.over_mean, "a map that takes every token to the mean")
    _say_beyond("  ", trust.over_null, f"{DRAWS} null maps' SAEs", ".1%")
    if not trust.is_told:
        print("Beware: on this text the carried SAE's latents cannot be distinguished from these.")
    print(f"{f'{trust.tokens:,} held-out tokens':44}{'L0':>8}{'FUV':>8}{'CE':>8}   more than the model's own")
    for name, metrics, loss in (
        (f"{source} itself", None, trust.source_loss),
        ("  with the original SAE", trust.original, trust.source_loss),
        (f"{target} itself", None, trust.target_loss),
        ("  with the carried SAE", trust.carried, trust.target_loss),
        ("  with the SAE of one null map", trust.null, trust.target_loss),
        ("  carried there and back, without an SAE", trust.alone, trust.target_loss),
    ):
        if metrics is None:
            print(f"{name:60}{loss:8.4f}")
            continue
        more, l0 = metrics.delta_loss, "" if metrics is trust.alone else f"{metrics.l0.value:.1f}"
        columns = f"{l0:>8}{metrics.fuv.value:8.4f}{loss + more.value:8.4f}"
        print(f"{name:44}{columns}   {more.value:+.4f} {_interval(more, '+.4f')}")
    above = trust.above_null
    print(f"CE with the carried SAE minus CE with the null map's: {above.value:+.4f} {_interval(above, '+.4f')}")
    silent = [f"{metrics.dead_fraction:.1%}" for metrics in (trust.original, trust.carried)]
    print(f"latents that never fired: {silent[0]} in the original, {silent[1]} in the carried one")
    print("FUV: fraction of variance unexplained, 1 for predicting the mean. CE: nats a token.")
    print(f"null maps: {NULLS}")


def say_vectors(trusts: Sequence[VectorTrust], source: str, *, of: int) -> None:
    """Print what vectors that were carried from model `source` do to predictions; the trusts are of the first `of`."""
    first = trusts[0]
    print(f"effect on predictions after {first.tokens:,} tokens of {first.documents:,} held-out documents, each vector")
    print(f"added to the stream of its model at {STRENGTH:g} of the stream's median norm:")
    for number, trust in enumerate(trusts):
        row = f"row {number}: " if of > 1 else "  "
        own = trust.over_null.value
        print(f"{row}correlation with what the original does in {source}: {own.value:.3f} {_interval(own, '.3f')}")
        _say_beyond(row, trust.over_null, f"{DRAWS} null maps' vectors", ".3f")
        _say_beyond(row, trust.over_random, f"{DRAWS} random directions of the stream", ".3f")
        if not trust.is_told:
            print(f"Beware: {row.lstrip()}on this text the carried vector cannot be distinguished from these.")
    if len(trusts) < of:
        print(f"(the first {len(trusts)} of {of:,} rows)")
    print(f"null maps: {NULLS}")


def say_probe(trust: ProbeTrust, source: str) -> None:
    """Print how the probe that was carried from model `source` does."""
    print(f"on {trust.tokens:,} tokens of {trust.documents:,} held-out documents:")
    print(f"  agrees with the original on the same token in {source}: {_share(trust.over_null.value)}")
    _say_more("  ", trust.over_constant, "a constant answer")
    _say_beyond("  ", trust.over_null, f"{DRAWS} null maps' probes", ".1%")
    if not trust.is_told:
        print("Beware: on this text the carried probe cannot be distinguished from these.")
    print(f"  variance of its score in {source} that the stitched stream explains (R^2): {_spread(trust.explained)}")
    print(f"  agrees with the original on the stitched stream: {trust.check:.2%} (a check: 100% up to rounding)")
    print(f"null maps: {NULLS}")


def say_survival(found: Sequence[Survival]) -> None:
    """Print what the maps leave of directions."""
    random, random_trip = found[0].kept_random, found[0].round_trip_random
    kept, ratios = _spread([each.kept for each in found]), _spread([each.kept / random for each in found])
    print(f"length that the stitch keeps: {kept} (random directions: {random:.3f}), {ratios} times that of random ones")
    trips = _spread([each.round_trip for each in found])
    print(f"cosine after mapping there and back: {trips} (random directions: {random_trip:.3f})")


def _say_beyond(start: str, found: Beyond, of: str, kind: str) -> None:
    """Print how much more a value is than the best draw of a null, and what that and the draws on average reach."""
    _say_more(start, found, f"the best of {of}", kind, f", the mean {found.mean:{kind}}")


def _say_more(start: str, found: Beyond, than: str, kind: str = ".1%", besides: str = "") -> None:
    """Print how much more a value is than a null reaches, and what that reaches."""
    more = f"{found.more.value:+{kind}} {_interval(found.more, f'+{kind}')}"
    print(f"{start}more than {than}: {more} (that reaches {found.best:{kind}}{besides})")


def _share(found: Estimate) -> str:
    return f"{found.value:.1%} {_interval(found, '.1%')}"


def _interval(found: Estimate, kind: str) -> str:
    return f"[{found.low:{kind}}, {found.high:{kind}}]"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{min(values):.3f} to {max(values):.3f}, mean {sum(values) / len(values):.3f}"
