"""What operators do with a rollout: pause, resume, abort. Pure."""

from dataclasses import replace

from hostmesh_controller.rollout.plan import HAVE_IT, all_back, back_again
from hostmesh_controller.rollout.progress import Mark, Progress, Stage, Touched


def taken_up(progress: Progress, now: float) -> Progress:
    """Go on with what another process kept: while nobody looked no host's deadline has passed."""
    hosts = {
        host: replace(each, unwell_since=now) if each.mark is Mark.ORDERED else each
        for host, each in progress.hosts.items()
    }
    return replace(progress, hosts=hosts)


class NotNowError(Exception):
    """The operator asks for what this rollout cannot do; the text says what to do instead."""


def paused(progress: Progress) -> Progress:
    """Let nobody else have the new version. Those that have it are watched on."""
    if progress.stage is not Stage.RUNNING and not (progress.stage is Stage.DONE and progress.absent):
        raise NotNowError(f"it is {progress.stage}: nobody gets the version now")
    return replace(progress, paused=True)


def resumed(progress: Progress, now: float) -> Progress:
    """Go on. What was called back is told the version anew, the canary first; what was not is tried again.

    Who could not go back tries that again.
    """
    before, progress = progress, back_again(progress, now)
    if progress.stage is Stage.DONE and (progress.reason or progress.paused or progress != before):
        return _late_again(progress, now)
    if progress.stage in {Stage.ABORTED, Stage.DONE}:
        raise NotNowError(f"it is {progress.stage}; delete the Rollout and apply it again to begin anew")
    if progress.stage is Stage.RUNNING:
        return replace(progress, paused=False)
    attempt = progress.attempt + 1
    hosts = {
        host: _told_again(each, attempt, now) if each.mark is Mark.FAILED else each
        for host, each in progress.hosts.items()
    }
    wave = progress.wave if progress.marked(*HAVE_IT) else 0
    # What began while this one stood still goes first.
    return replace(
        progress,
        stage=Stage.RUNNING,
        paused=False,
        wave=wave,
        attempt=attempt,
        reason="",
        hosts=hosts,
        began=now,
    )


def _told_again(touched: Touched, attempt: int, now: float) -> Touched:
    return Touched(Mark.ORDERED, attempt, touched.before, now, None, now, refused=touched.refused)


def _late_again(progress: Progress, now: float) -> Progress:
    """Try again those of the absent that failed: those that went back as any other that is absent."""
    attempt = progress.attempt + 1
    hosts = {
        host: _told_again(each, attempt, now) if each.mark is Mark.FAILED else each
        for host, each in progress.hosts.items()
        if each.mark is not Mark.RETURNED
    }
    again = {host: each.before for host, each in progress.hosts.items() if each.mark is Mark.RETURNED}
    absent = {**progress.absent, **again}
    return replace(progress, paused=False, attempt=attempt, reason="", hosts=hosts, absent=absent)


def aborted(progress: Progress, now: float) -> Progress:
    """Return all that have the new version to what they had, for good; those that could not try again."""
    progress = back_again(progress, now)
    if progress.stage is Stage.ABORTED:
        return progress
    # The pause ends with it: another version is another rollout.
    reason = progress.reason or "an operator ended it"
    ended = replace(progress, stage=Stage.ABORTED, paused=False, absent={}, reason=reason)
    return all_back(ended, now)
