"""Where the boxes of a picture are, and how lines go between them.

Boxes that lines connect are a group. The most connected one is in the middle of it, and the others are in columns to
the left and right, nearer ones first. So most lines connect neighboring columns; others pass the columns between them
through the gaps between boxes.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

GAP, GUTTER, MARGIN = 28, 64, 28  # between the boxes of a column, between columns, around a group
BROADEST = 1100  # of a row of groups, if one group is not broader
LOWEST, ASPECT = 560, 0.6  # a column that is higher, and higher than it is wide, becomes several
SWEEPS = 3
LANE, LANES = 5, 4  # lines through one gap are apart

Neighbors = Mapping[int, Sequence[int]]


@dataclass(slots=True)
class Column:
    """A column of boxes.

    Attributes:
        x: the left edge.
        top: where the group begins.
        bottom: where it ends.
        boxes: upper and lower edges of its boxes, from above.
        passing: the number of lines through each gap.
    """

    x: float
    top: float
    bottom: float
    boxes: list[tuple[float, float]]
    passing: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def lane(self, wanted: float) -> float:
        """Where a line passes, nearest to where it should."""
        edges = [self.top, *(edge for box in self.boxes for edge in box), self.bottom]
        gaps = [(upper + GAP / 2, lower - GAP / 2) for upper, lower in zip(edges[::2], edges[1::2], strict=True)]
        lanes = [min(max(wanted, upper), max(lower, upper)) for upper, lower in gaps]
        number = min(range(len(lanes)), key=lambda gap: abs(lanes[gap] - wanted))
        self.passing[number] += 1
        return lanes[number] + LANE * ((self.passing[number] % LANES) - LANES / 2 + 0.5)


@dataclass(frozen=True, slots=True)
class Line:
    """A line, and the point of an arrow at its end, as the data of SVG paths; and the middle of a label."""

    path: str
    arrow: str
    label: tuple[float, float]


@dataclass(slots=True)
class Layout:
    """The places of boxes, which all have the same width."""

    box_width: int
    width: float = 0
    height: float = 0
    corners: dict[int, tuple[float, float]] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    column_of: dict[int, int] = field(default_factory=dict)

    def line(self, start: int, end: int, start_y: float, end_y: float) -> Line:
        """A line between two boxes, which crosses no box.

        Args:
            start: number of a box.
            end: number of a box in the same group.
            start_y: where it begins, from the box's upper edge.
            end_y: where it ends.
        """
        first, last = self.column_of[start], self.column_of[end]
        y, target = self.corners[start][1] + start_y, self.corners[end][1] + end_y
        if first == last:
            return _bend(self._side(first, 1), y, target)
        step = 1 if last > first else -1
        x = self._side(first, step)
        path, label = f"M{x:g} {y:g}", None
        for column in range(first + step, last + step, step):
            part = (column - first) / (last - first)
            height = target if column == last else self.columns[column].lane(y + (target - y) * part)
            entry = self._side(column, -step)
            middle = (x + entry) / 2
            path += f"C{middle:g} {y:g} {middle:g} {height:g} {entry:g} {height:g}"
            label = label or (middle, (y + height) / 2)
            x, y = entry, height
            if column != last:
                x = self._side(column, step)
                path += f"H{x:g}"
        return Line(path, _arrow(x, target, step), label or (x, y))

    def _side(self, column: int, step: int) -> float:
        """The right edge of a column, or its left edge if `step` is negative."""
        return self.columns[column].x + (self.box_width if step > 0 else 0)

    def add(self, columns: Sequence[Sequence[int]], heights: Sequence[int], x: float, y: float) -> None:
        """Place a group whose left upper corner is known."""
        height = _group_height(columns, heights)
        for number, boxes in enumerate(columns):
            left = x + number * (self.box_width + GUTTER)
            top = y + (height - _column_height(boxes, heights)) / 2
            column = Column(left, y - MARGIN, y + height + MARGIN, [])
            for box in boxes:
                self.corners[box] = (left, round(top))
                self.column_of[box] = len(self.columns)
                column.boxes.append((round(top), round(top) + heights[box]))
                top += heights[box] + GAP
            self.columns.append(column)
        self.width = max(self.width, x + _group_width(columns, self.box_width) + MARGIN)
        self.height = max(self.height, y + height + MARGIN)


def arrange(heights: Sequence[int], box_width: int, lines: Iterable[tuple[int, int]]) -> Layout:
    """Place boxes; the same arguments give the same places.

    Args:
        heights: the height of each box.
        box_width: the width of all.
        lines: pairs of numbers of boxes.
    """
    linked: dict[int, dict[int, None]] = {box: {} for box in range(len(heights))}
    for start, end in lines:
        if start != end:
            linked[start][end] = linked[end][start] = None
    neighbors = {box: list(others) for box, others in linked.items()}
    groups = [_columns(group, neighbors, heights, box_width) for group in _connected(neighbors, neighbors)]
    groups.sort(key=lambda columns: (-sum(map(len, columns)), -_group_height(columns, heights)))
    layout = Layout(box_width)
    limit = max([BROADEST, *(_group_width(columns, box_width) for columns in groups)])
    x, y, bottom = float(MARGIN), float(MARGIN), 0.0
    for columns in groups:
        width = _group_width(columns, box_width)
        if x > MARGIN and x + width > limit + MARGIN:
            x, y = MARGIN, bottom + MARGIN
        layout.add(columns, heights, x, y)
        x += width + MARGIN
        bottom = max(bottom, y + _group_height(columns, heights))
    return layout


def _connected(boxes: Iterable[int], neighbors: Neighbors) -> list[list[int]]:
    """The groups of boxes that lines connect, without leaving `boxes`."""
    left = dict.fromkeys(boxes)
    groups = []
    while left:
        groups.append(list(_distances([next(iter(left))], left, neighbors)))
        for box in groups[-1]:
            del left[box]
    return groups


def _distances(starts: Iterable[int], boxes: Mapping[int, object], neighbors: Neighbors) -> dict[int, int]:
    """Numbers of lines to each box that can be reached without leaving `boxes`."""
    found = dict.fromkeys(starts, 0)
    queue = deque(found)
    while queue:
        box = queue.popleft()
        for other in neighbors[box]:
            if other in boxes and other not in found:
                found[other] = found[box] + 1
                queue.append(other)
    return found


def _columns(group: Sequence[int], neighbors: Neighbors, heights: Sequence[int], width: int) -> list[list[int]]:
    """The columns of a group, from left to right."""
    root = min(group, key=lambda box: (-len(neighbors[box]), box))
    area = sum(heights[box] + GAP for box in group) * (width + GUTTER)
    limit = max(LOWEST, math.sqrt(ASPECT * area), *(heights[box] for box in group))
    sides: tuple[list[int], list[int]] = ([], [])
    parts = _connected((box for box in group if box != root), neighbors)
    for part in sorted(parts, key=len, reverse=True):
        # Right first, so that two tables are read from left to right if the root refers to the other.
        min(reversed(sides), key=len).extend(part)
    left, right = (_layers(root, side, neighbors, heights, limit) for side in sides)
    return [*reversed(left), [root], *right]


def _layers(
    root: int, side: Sequence[int], neighbors: Neighbors, heights: Sequence[int], limit: float
) -> list[list[int]]:
    """The columns on one side of a root, the nearest first."""
    layers: dict[int, list[int]] = defaultdict(list)
    for box, distance in _distances([root], dict.fromkeys(side), neighbors).items():
        layers[distance].append(box)
    ordered = [layers[distance] for distance in range(1, len(layers))]
    for _ in range(SWEEPS):
        for before, after in [*pairwise(ordered), *pairwise(reversed(ordered))]:
            _sort_by_neighbors(after, before, neighbors)
    return [column for layer in ordered for column in _folded(layer, heights, limit)]


def _sort_by_neighbors(layer: list[int], fixed: Sequence[int], neighbors: Neighbors) -> None:
    """Sort a layer by where its neighbors are in another one, so that few lines cross."""
    place = dict(zip(fixed, count(), strict=False))

    def mean(box: int) -> float:
        places = [place[other] for other in neighbors[box] if other in place]
        return sum(places) / len(places) if places else math.inf

    layer.sort(key=mean)


def _folded(layer: Sequence[int], heights: Sequence[int], limit: float) -> list[list[int]]:
    """The columns of a layer, of about the same height."""
    total = _column_height(layer, heights)
    number = math.ceil(total / limit)
    columns: list[list[int]] = [[] for _ in range(number)]
    used = 0.0
    for box in layer:
        columns[min(int(number * used / total), number - 1)].append(box)
        used += heights[box] + GAP
    return [column for column in columns if column]


def _column_height(boxes: Sequence[int], heights: Sequence[int]) -> int:
    return sum(heights[box] + GAP for box in boxes) - GAP


def _group_height(columns: Sequence[Sequence[int]], heights: Sequence[int]) -> int:
    return max(_column_height(column, heights) for column in columns)


def _group_width(columns: Sequence[Sequence[int]], box_width: int) -> int:
    return len(columns) * (box_width + GUTTER) - GUTTER


def _bend(x: float, start: float, end: float) -> Line:
    """A line at the right of a column, between two of its boxes or two places of one."""
    bend = x + min(16 + abs(end - start) / 10, MARGIN)
    path = f"M{x:g} {start:g}C{bend:g} {start:g} {bend:g} {end:g} {x:g} {end:g}"
    return Line(path, _arrow(x, end, -1), (x + (bend - x) * 0.75, (start + end) / 2))


def _arrow(x: float, y: float, step: int) -> str:
    """The point of an arrow that goes to the right, or to the left if `step` is negative."""
    back = x - 6 * step
    return f"M{back:g} {y - 4:g}L{x:g} {y:g}L{back:g} {y + 4:g}"
