"""Huge pages for training on CPUs under Linux.

XLA allocates the temporaries of a step anew each time; in small pages that takes up to a tenth of a step on CPUs.
"""

import os
import sys

HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def take_huge_pages() -> None:
    """Where Linux gives huge pages to programs that ask, starts this one again with glibc asking for large allocations.

    glibc reads the setting at the start only. What the user has set stays.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not os.path.exists(HUGE_PAGES):
        return
    with open(HUGE_PAGES) as file:
        left_to_programs = "[madvise]" in file.read()
    if left_to_programs:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
