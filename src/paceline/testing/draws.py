"""Every random draw is a function of seed and prompt: the same traffic gets the same pace in any order."""

import hashlib
import math
import random

from paceline.testing.config import Model

_Z90, _Z95 = 1.2815515655446004, 1.6448536269514722  # standard normal quantiles


class Draw:
    """The draws for one request; `occurrence` counts requests with the same prompt."""

    def __init__(self, seed: int, model: str, prompt: bytes, occurrence: int) -> None:
        digest = hashlib.blake2b(prompt, key=f"{seed}:{model}:{occurrence}".encode()[:64], digest_size=8).digest()
        self._random = random.Random(int.from_bytes(digest, "little"))
        self.share = self._random.random()  # decides faults

    def ttft_s(self, model: Model) -> float:
        """Seconds to the first token."""
        return self._log_normal(model.ttft_p50_s, model.ttft_p95_s, _Z95)

    def output_tokens(self, model: Model, *, with_context: bool) -> int:
        """Length of a free answer."""
        ratio = 1.0 if with_context else model.no_context_ratio
        return max(1, round(self._log_normal(model.output_p50_tokens, model.output_p90_tokens, _Z90) * ratio))

    def gaps_s(self, model: Model, count: int) -> list[float]:
        """Seconds before each token after the first: gamma, coefficient of variation 0.5 (shape 4)."""
        if model.token_gap_s <= 0:
            return [0.0] * count
        return [self._random.gammavariate(4.0, model.token_gap_s / 4.0) for _ in range(count)]

    def total_gap_s(self, model: Model, count: int) -> float:
        """The sum of `count` gaps, drawn at once: a sum of gammas is a gamma."""
        if model.token_gap_s <= 0 or count <= 0:
            return 0.0
        return self._random.gammavariate(4.0 * count, model.token_gap_s / 4.0)

    def cut_at(self, count: int) -> int:
        """After how many of `count` pieces a cut stream ends."""
        return self._random.randrange(1, max(2, count))

    def _log_normal(self, median: float, high: float, z: float) -> float:
        sigma = math.log(high / median) / z
        return median * math.exp(sigma * self._random.gauss(0.0, 1.0))
