"""What is known of the published splits: how many clips and queries, and where possible the hash of their ids.

Ids and hashes only, never captions. A hash is given only where every id is known; None means unknown to us, and reports
say so instead of guessing. Sources: MSR-VTT's ranges (6,513 / 497 / 2,990 videos by number) and the 1k-A test list as
published with collaborative-experts; the 7k training list is train and val together, the 9k list all but the test list.
"""

from __future__ import annotations

from dataclasses import dataclass

from vctool.data.records import Split, ids_sha256

# MSR-VTT 1k-A test videos by number: JSFusion's fixed thousand, all from the full test split.
_MSRVTT_1KA_TEST = (
    "7020-7021 7024-7029 7034-7035 7060-7061 7064 7110-7119 7131 7134-7135 7137-7138 7140-7160 7162-7166 7168-7179 "
    "7200-7207 7209 7211-7220 7222-7223 7227-7237 7333 7340-7343 7345-7378 7410-7415 7418-7419 7431-7432 7436 7438 "
    "7444-7445 7461-7462 7464 7466-7469 7478 7491 7500-7502 7506 7528 7542-7549 7552 7554 7556 7558-7581 7583 7586-7594 "
    "7596-7599 7610 7613-7616 7619 7632 7649 7669 7680-7682 7684-7688 7693 7695 7698-7699 7701 7704 7710 7723-7726 7728 "
    "7730-7733 7741 7744 7747 7751-7757 7763 7765-7768 7771-7772 7776 7780 7782-7783 7785-7799 7820 7822-7823 7825-7839 "
    "7843-7845 7849 7854 7890 7898 7900 7902 7909-7917 7919 7939 7946-7947 7960-7970 7972-7974 7976-7979 8010-8014 8016 "
    "8018 8022 8025 8027 8044 8048-8049 8056-8057 8061 8067-8079 8089 8110-8111 8116 8118-8125 8128-8129 8175 8240-8269 "
    "8300-8337 8339-8349 8392 8416 8420 8423 8426 8440-8447 8450-8451 8453 8456-8457 8459 8461-8464 8466 8468-8483 "
    "8485-8486 8488-8499 8507 8514 8556 8572-8573 8578 8601 8604-8606 8618 8620 8622 8626 8628 8650-8657 8660-8690 8712 "
    "8721 8727 8741 8751-8752 8756 8772 8774 8780-8781 8783-8784 8786-8792 8794 8796-8801 8803-8808 8810-8832 8834-8837 "
    "8839 8851 8860-8869 8879 8895 8899-8932 8934-8938 8945 8948-8949 8973-8974 8978-8979 8999 9010-9039 9063 9117 9119 "
    "9131 9200-9209 9220-9259 9277 9300-9309 9320-9359 9368 9400 9403-9406 9409 9416 9418-9419 9428 9450-9452 9458 9472 "
    "9474 9489 9503 9508-9522 9524 9530 9534-9535 9537 9539 9542 9545 9548-9549 9574-9581 9589 9600 9603 9605 9607 9609 "
    "9620 9622-9623 9625 9639 9647 9657 9677 9679-9699 9728 9731 9734-9735 9742 9744-9745 9750 9752 9755 9770-9782 9784 "
    "9788 9790-9791 9793 9795 9797-9798 9800-9839 9871-9873 9878-9879 9882 9885 9901 9908-9909 9919 9957 9969 9975"
)


@dataclass(frozen=True)
class Published:
    """Size of a published split; `queries` None where it depends on which captions survive; `ids_sha256` None if unknown."""

    clips: int
    queries: int | None = None
    ids_sha256: str | None = None


def msrvtt_1ka_test_ids() -> list[str]:
    """The 1,000 ids of MSR-VTT 1k-A test, by number."""
    numbers: list[int] = []
    for run in _MSRVTT_1KA_TEST.split():
        first, _, last = run.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [f"video{number}" for number in numbers]


def msrvtt_ids(benchmark: str, split: str) -> list[str] | None:
    """All ids of a split of MSR-VTT where they are known (not 1k-B)."""
    ranges = {"train": range(6513), "val": range(6513, 7010), "test": range(7010, 10_000)}
    if benchmark == "msrvtt-full" and split in ranges:
        return [f"video{number}" for number in ranges[split]]
    test = msrvtt_1ka_test_ids()
    if benchmark in ("msrvtt-1ka", "msrvtt-1ka-7k") and split == "test":
        return test
    if benchmark == "msrvtt-1ka-7k" and split == "train":
        return [f"video{number}" for number in range(7010)]
    if benchmark == "msrvtt-1ka" and split == "train":
        held = set(test)
        return [name for number in range(10_000) if (name := f"video{number}") not in held]
    return None


PUBLISHED = {
    ("msrvtt-1ka", "train"): Published(9000, None, "12e456ceab25905ffc585c4dfdf1d2972f563b63c317effdee7943bc84075ace"),
    ("msrvtt-1ka", "test"): Published(1000, 1000, "64462f74c95235d602a0a231e7f2125640ebbf3de0e226fbdd5e64f621c46d83"),
    ("msrvtt-1ka-7k", "train"): Published(7010, None, "e63825a66cb7194c0502b86c4178dc1dc4b0e84bd47337b563d9f4cd58890596"),
    ("msrvtt-1ka-7k", "test"): Published(1000, 1000, "64462f74c95235d602a0a231e7f2125640ebbf3de0e226fbdd5e64f621c46d83"),
    ("msrvtt-full", "train"): Published(6513, None, "3824b98b962a59653d7191fee6b92eef5954374ae97ef284ed9a1f777c7e1825"),
    ("msrvtt-full", "val"): Published(497, None, "e58250844311d2323f43865e51e84f42b2862099f0df726d5a0df59f17f97f12"),
    ("msrvtt-full", "test"): Published(2990, None, "e033df45731e025a1b7b4731ee3eddc400b6040c93fffd4ab3eb45a551f0526e"),
    ("msrvtt-1kb", "train"): Published(6656),
    ("msrvtt-1kb", "test"): Published(1000),
    ("msvd", "train"): Published(1200, 48_774),
    ("msvd", "val"): Published(100, 4290),
    ("msvd", "test"): Published(670, 27_763),
    ("vatex", "train"): Published(25_991, 259_910),
    ("vatex", "val"): Published(1500, 15_000),
    ("vatex", "test"): Published(1500, 15_000),
    ("vatex-official", "train"): Published(25_991, 259_910),
    ("vatex-official", "val"): Published(3000, 30_000),
    ("vatex-official", "test"): Published(6000, 60_000),
    ("didemo", "train"): Published(8392, 8392),
    ("didemo", "val"): Published(1065, 1065),
    ("didemo", "test"): Published(1004, 1004),
    ("activitynet", "train"): Published(10_009, 10_009),
    ("activitynet", "val_1"): Published(4917, 4917),
    ("activitynet", "val_2"): Published(4885, 4885),
    ("lsmdc", "train"): Published(101_079),
    ("lsmdc", "val"): Published(7408, 7408),
    ("lsmdc", "test"): Published(1000, 1000),
}


@dataclass(frozen=True)
class Comparison:
    """A split beside the published one. same: True if the ids' hash agrees, False if size or hash differ, None if unknown."""

    same: bool | None
    statement: str


def compare_with_published(split: Split) -> Comparison:
    """Whether this is the published split, as far as can be known."""
    known = PUBLISHED.get((split.benchmark, split.name))
    if known is None:
        return Comparison(None, "no published split to compare with")
    if len(split.clips) != known.clips:
        return Comparison(False, f"{len(split.clips):,} clips where the published split has {known.clips:,}: not comparable")
    if known.queries is not None and len(split.queries) != known.queries:
        return Comparison(False, f"{len(split.queries):,} queries where the published split has {known.queries:,}: not comparable")
    if known.ids_sha256 is None:
        return Comparison(None, f"{known.clips:,} clips as published; the hash of the published ids is unknown")
    if ids_sha256(split.clip_ids) != known.ids_sha256:
        return Comparison(False, f"{known.clips:,} clips as published, but not the same ones (the ids' SHA-256 differs)")
    return Comparison(True, f"the published split: {known.clips:,} ids, SHA-256 as recorded")
