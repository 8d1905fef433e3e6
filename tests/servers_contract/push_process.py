"""A push in a process of its own, which a test kills. Prints the number of items that are done after each batch.

python -m tests.servers_contract.push_process URL ITEMS BATCH_SIZE SEED
"""

import sys

from crovca.servers.push import push_to
from tests.servers_contract.samples import MemoryIndex, sample


def index_of(items, seed):
    """The same index in every process."""
    return MemoryIndex(64).upsert(*sample(items, 64, seed))


def main():
    url = sys.argv[1]
    items, batch_size, seed = map(int, sys.argv[2:])
    push_to(index_of(items, seed), url, batch_size=batch_size, progress=lambda done, total: print(done, flush=True))


if __name__ == "__main__":
    main()
