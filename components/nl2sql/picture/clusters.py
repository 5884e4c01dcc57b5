"""Clusters of the tables of a large schema."""

from collections import Counter, deque
from collections.abc import Sequence

from chatmetrics.components.nl2sql.join_graph import JoinGraph

SMALLEST = 0.1  # of the size of a cluster; what is smaller joins a neighbor


def cluster_tables(tables: Sequence[str], graph: JoinGraph, size: int) -> list[list[str]]:
    """Divide tables into clusters of about `size` tables that foreign keys connect, the largest first.

    A cluster grows around the most connected table that is left, and begins with it. What is left between clusters
    joins the one with which it has most keys, so that a table that everything refers to stays with all of it. Tables
    without keys are in no cluster.

    Args:
        tables: names of tables; foreign keys of others are ignored.
        graph: the graph of these or more tables.
        size: the number of tables with which a cluster stops to grow.
    """
    own = set(tables)
    neighbors = {table: [other for other in graph.neighbors(table) if other in own] for table in tables}
    cluster_of: dict[str, int] = {}
    clusters: list[list[str]] = []
    for table in sorted(tables, key=lambda table: -len(neighbors[table])):
        if table in cluster_of or not neighbors[table]:
            continue
        found = _grown(table, neighbors, cluster_of, size)
        number = _nearest(found, neighbors, cluster_of) if len(found) < SMALLEST * size else None
        if number is None:
            number = len(clusters)
            clusters.append([])
        clusters[number] += found
        cluster_of |= dict.fromkeys(found, number)
    return sorted(clusters, key=len, reverse=True)


def _grown(table: str, neighbors: dict[str, list[str]], taken: dict[str, int], size: int) -> list[str]:
    """A table and those nearest to it that no cluster has."""
    found: dict[str, None] = {table: None}
    queue = deque(found)
    while queue:
        for neighbor in neighbors[queue.popleft()]:
            if neighbor not in found and neighbor not in taken:
                if len(found) == size:
                    return list(found)
                found[neighbor] = None
                queue.append(neighbor)
    return list(found)


def _nearest(found: list[str], neighbors: dict[str, list[str]], cluster_of: dict[str, int]) -> int | None:
    """The cluster with which tables have most keys; None if they have none."""
    keys = Counter(cluster_of[other] for table in found for other in neighbors[table] if other in cluster_of)
    return keys.most_common(1)[0][0] if keys else None
