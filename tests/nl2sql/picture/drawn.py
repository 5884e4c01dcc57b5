"""Reads a picture of a schema as a person sees it: boxes and their texts, in pixels of the page."""

import re
import unicodedata
from dataclasses import dataclass
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"
ADVANCE = 0.6  # of a monospaced font's size; Chinese characters need twice that at most
SIZES = {"name": 12, "note": 10, "mark": 8, "label": 10}


@dataclass(frozen=True)
class Text:
    content: str
    left: float
    right: float
    y: float


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    style: str
    texts: tuple[Text, ...]

    @property
    def title(self) -> str:
        return self.texts[0].content

    @property
    def lines(self) -> list[str]:
        return [text.content for text in self.texts[1:]]

    def contains(self, x: float, y: float) -> bool:
        return self.x < x < self.x + self.width and self.y < y < self.y + self.height


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    texts: tuple[Text, ...]
    boxes: tuple[Box, ...]
    lines: tuple[tuple[str, str, str], ...]  # style, path, tooltip
    labels: tuple[str, ...]

    @classmethod
    def read(cls, svg: str) -> "Drawing":
        root = ElementTree.fromstring(svg)
        width, height = float(root.get("width", "")), float(root.get("height", ""))
        group = root.find(f"{SVG}g")
        assert group is not None
        boxes = tuple(
            Box(
                *(float(box.get(name, "")) for name in ("x", "y", "width", "height")),
                box.get("class", ""),
                tuple(map(_text, box.findall(f"{SVG}text"))),
            )
            for box in group.findall(f"{SVG}svg")
        )
        lines = tuple(
            (path.get("class", ""), path.get("d", ""), path.findtext(f"{SVG}title") or "")
            for path in group.findall(f"{SVG}path")
            if path.find(f"{SVG}title") is not None
        )
        labels = tuple(text.text or "" for text in group.findall(f"{SVG}text"))
        return cls(width, height, tuple(map(_text, root.findall(f"{SVG}text"))), boxes, lines, labels)

    def box(self, title: str) -> Box:
        return next(box for box in self.boxes if box.title == title)

    def check(self) -> None:
        """No boxes overlap, all texts are inside their box or the picture, and no line crosses a box."""
        for number, box in enumerate(self.boxes):
            assert box.x >= 0 and box.x + box.width <= self.width and box.y >= 0 and box.y + box.height <= self.height
            for other in self.boxes[:number]:
                apart_x = box.x + box.width <= other.x or other.x + other.width <= box.x
                apart_y = box.y + box.height <= other.y or other.y + other.height <= box.y
                assert apart_x or apart_y, (box, other)
            for text in box.texts:
                assert text.left >= 0 and text.right <= box.width and 0 < text.y < box.height, (box, text)
            same_line = [(a, b) for a in box.texts for b in box.texts if a.y == b.y and a.left < b.left]
            assert all(a.right <= b.left for a, b in same_line), same_line
        for text in self.texts:
            assert text.left >= 0 and text.right <= self.width and 0 < text.y < self.height
        for _, path, tooltip in self.lines:
            for x, y in points(path):
                assert not any(box.contains(x, y) for box in self.boxes), tooltip


def points(path: str) -> list[tuple[float, float]]:
    """Points on a path of M, C and H, close to each other."""
    found: list[tuple[float, float]] = []
    x = y = 0.0
    for command, arguments in re.findall(r"([MCH])([^MCH]*)", path):
        numbers = [float(number) for number in arguments.split()]
        if command == "M":
            x, y = numbers
            continue
        ends = (x, y, x, y, numbers[0], y, numbers[0], y) if command == "H" else (x, y, *numbers)
        for step in range(41):
            t = step / 40
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            found.append(
                (
                    sum(weight * value for weight, value in zip(weights, ends[::2], strict=True)),
                    sum(weight * value for weight, value in zip(weights, ends[1::2], strict=True)),
                )
            )
        x, y = ends[-2:]
    return found


def _text(element: ElementTree.Element) -> Text:
    style, content = element.get("class", ""), element.text or ""
    letters = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in content)
    width = letters * ADVANCE * SIZES.get(style, 11)
    x = float(element.get("x", "")) - (width if style == "note" else 0)
    return Text(content, x, x + width, float(element.get("y", "")))
