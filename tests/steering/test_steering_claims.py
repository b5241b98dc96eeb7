"""What the claims about steering, and those of the sister paper, make of paired quantities and their intervals."""

import shutil
from pathlib import Path

import pytest

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import write_results

HALF = 0.04  # of each interval


def of_both(**numbers):
    return {f"steering.tiny.{side}.{id}": value for side in "ab" for id, value in numbers.items()}


def of_lrt(**numbers):
    return {f"lrt.tiny.{id.replace('__', '.')}": value for id, value in numbers.items()}


TRANSFERS = of_both(gain=0.5, over_components=0.3)
RECOVERS = of_both(native_gain=0.6, beyond_half=0.1)
STEERS = of_lrt(steering__native_gain=0.6, steering__beyond_half=0.1, steering__over_components=0.2)
CORRELATES = of_lrt(correlation_summary__lowest=0.8, steered__sister__over_null=0.1)


@pytest.mark.parametrize(
    ("claim", "numbers", "verdict"),
    [
        ("steering-transfers", TRANSFERS, "holds"),
        ("steering-transfers", TRANSFERS | {"steering.tiny.b.over_components": 0.0}, "partly"),
        ("steering-transfers", TRANSFERS | of_both(over_components=0.0), "does not hold"),
        ("steering-transfers", TRANSFERS | {"steering.tiny.b.over_components": 0.12}, "partly"),
        ("steering-recovers-native", RECOVERS, "holds"),
        ("steering-recovers-native", RECOVERS | of_both(beyond_half=0.01), "inconclusive"),
        ("steering-recovers-native", RECOVERS | of_both(native_gain=0.0), "not testable"),
        ("native-steering-is-stronger", of_both(native_lead=0.1), "holds"),
        (
            "native-steering-is-stronger",
            of_both(native_lead=0.1) | {"steering.tiny.a.native_lead": 0.02},
            "inconclusive",
        ),
        ("native-steering-is-stronger", of_both(native_lead=-0.1), "does not hold"),
        ("steering-beats-random-direction", of_both(over_random=0.2), "holds"),
        ("steering-beats-random-direction", of_both(over_random=0.05), "does not hold"),
        ("native-steering-is-fluent", of_both(**{"native.fluent": 0.8}), "holds"),
        ("native-steering-is-fluent", of_both(**{"native.fluent": 0.68}), "inconclusive"),
        ("unsteered-responses-stay-english", of_both(**{"none.away": 0.0, "random.away": 0.0}), "holds"),
        ("unsteered-responses-stay-english", of_both(**{"none.away": 0.0, "random.away": 0.2}), "partly"),
        ("unsteered-responses-stay-english", of_both(**{"none.away": 0.02, "random.away": 0.0}), "inconclusive"),
        ("vectors-transfer-without-bias", of_both(over_biased=0.1), "holds"),
        ("vectors-transfer-without-bias", of_both(over_biased=0.02), "inconclusive"),
        ("frequent-languages-transfer-better", (8, 0.5), "holds"),
        ("frequent-languages-transfer-better", (8, 0.02), "inconclusive"),
        ("frequent-languages-transfer-better", (4, 0.5), "not testable"),
        ("lrt-steering-transfers", STEERS, "holds"),
        ("lrt-steering-transfers", STEERS | of_lrt(steering__over_components=-0.1), "does not hold"),
        ("lrt-steering-transfers", STEERS | of_lrt(steering__beyond_half=-0.1), "does not hold"),
        ("lrt-steering-transfers", STEERS | of_lrt(steering__native_gain=0.0), "not testable"),
        ("lrt-steering-beats-random", of_lrt(steering__over_random=0.12), "partly"),
        ("lrt-steering-beats-random", of_lrt(steering__over_random=0.02), "inconclusive"),
        ("lrt-effects-correlate", CORRELATES, "holds"),
        ("lrt-effects-correlate", CORRELATES | of_lrt(steered__sister__over_null=-0.1), "does not hold"),
        ("lrt-effects-correlate", CORRELATES | of_lrt(correlation_summary__lowest=0.72), "inconclusive"),
        ("lrt-bias-spoils-vectors", of_lrt(steered__main__over_bias=0.02), "inconclusive"),
        ("lrt-bias-makes-vectors-alike", of_lrt(steered__bias__likeness_gain=0.3), "holds"),
        ("lrt-svcca-layers-steer-better", of_lrt(steered__main__over_same_layers=-0.1), "does not hold"),
        ("lrt-correlation-needs-a-control", of_lrt(steered__random__curve_correlation_size=0.72), "partly"),
        ("lrt-map-exists", of_lrt(validation_loss__over_mean__increase=-0.4), "holds"),
        ("lrt-map-exists", of_lrt(validation_loss__over_mean__increase=-0.28), "inconclusive"),
        ("lrt-code-beats-stream", of_lrt(sae_code__over_stream__increase=-0.1), "holds"),
        ("lrt-transferred-code-is-better", of_lrt(sae_code__b_fitted__below_a_fitted=0.02), "inconclusive"),
    ],
)
def test_what_the_claims_make_of_the_numbers(project, claim, numbers, verdict):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    able = {}
    if isinstance(numbers, tuple):
        able, numbers = {"figure11.tiny.able": numbers[0]}, {"figure11.tiny.correlation_where_native_works": numbers[1]}
    ends = {
        f"{id}{end}": value + way * HALF for id, value in numbers.items() for end, way in ((".low", -1), (".high", 1))
    }
    write_results("tiny", "steering", numbers | ends | able)
    (said,) = (said for said in verdicts("tiny") if said.id == claim)
    assert said.verdict == verdict
