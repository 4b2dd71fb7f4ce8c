"""A rate limiter: one entity for each client, asked by many callers at once.

celery -A rate_limiter worker
python rate_limiter.py
"""

import asyncio
import time

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

app = Celery("rate_limiter")
entities = EntityCelery(app)


@entities.register
class Limiter(Entity):
    """Lets so many calls pass in each window of time."""

    allowed: int = 5
    window_s: float = 60.0
    began_at_s: float = 0.0
    used: int = 0

    @handler
    def take(self) -> bool:
        """Whether the call may pass. Turns of one entity run one after the other, so no two take the same place."""
        now_s = time.time()
        if now_s - self.began_at_s >= self.window_s:
            self.began_at_s, self.used = now_s, 0
        if self.used >= self.allowed:
            return False
        self.used += 1
        return True


async def main() -> None:
    """Twenty callers at once; five pass."""
    limiter = Limiter.ref("client-7")
    answers = await asyncio.gather(*(limiter.take.aask() for _ in range(20)))
    print(f"{sum(answers)} of {len(answers)} calls passed")


if __name__ == "__main__":
    asyncio.run(main())
