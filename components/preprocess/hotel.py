"""Generates the demo data: a database of hotels in China, and questions about it in Chinese and English."""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from chatmetrics.components.console import track
from chatmetrics.components.preprocess.hotel_forms import FORMS, Form

DATABASE = "hotel"
TRAINING_QUESTIONS_PER_FORM = 144
VALUE_QUESTIONS_PER_FORM = 5
WORDING_QUESTIONS_PER_FORM = 3
HELD_OUT_SHARE = 0.25
MAX_DRAWS = 200  # attempts to find a question that was not asked before

DISTRICTS = {
    "上海": "浦东新区 黄浦区 徐汇区 静安区 长宁区 虹口区 杨浦区 闵行区",
    "北京": "朝阳区 海淀区 东城区 西城区 丰台区 通州区 石景山区",
    "广州": "天河区 越秀区 海珠区 白云区 番禺区",
    "深圳": "南山区 福田区 罗湖区 宝安区 龙岗区",
    "杭州": "西湖区 上城区 拱墅区 滨江区 余杭区",
    "成都": "锦江区 武侯区 青羊区 成华区 双流区 天府新区",
    "南京": "玄武区 秦淮区 鼓楼区 建邺区 江北新区",
    "武汉": "江汉区 武昌区 洪山区 江岸区",
    "西安": "雁塔区 碑林区 莲湖区 未央区 西咸新区",
    "苏州": "姑苏区 吴中区 虎丘区",
    "青岛": "市南区 市北区 崂山区 西海岸新区",
    "厦门": "思明区 湖里区 集美区",
    "天津": "和平区 河西区 南开区 滨海新区",
    "重庆": "渝中区 沙坪坝区 九龙坡区 南岸区 两江新区",
    "长沙": "岳麓区 芙蓉区 雨花区 湘江新区",
    "大连": "中山区 沙河口区 甘井子区 金普新区",
}
BRANDS = ("锦绣", "云栖", "悦来", "天和", "金陵", "海悦", "君澜", "书香", "维景", "远洲")
LANDMARKS = (
    *("外滩", "滨江", "花园", "国际", "中心", "湖畔", "古城", "会展", "机场", "车站"),
    *("大学", "广场", "森林", "温泉", "月亮湾", "云顶", "星河", "南湖", "西岸", "北苑"),
)
ROOM_TYPES = {"大床房": (280, 2), "双床房": (300, 2), "家庭房": (480, 4), "商务房": (560, 2), "套房": (900, 3)}
SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
GIVEN_NAMES = (
    *"伟芳娜敏静丽强磊军洋勇艳杰娟涛明超",
    *("秀英", "志强", "小红", "建国", "雨桐", "子涵", "浩然", "欣怡"),
)
LEVELS = ("普通", "白银", "黄金", "钻石")
STATUSES = ("已完成", "已取消", "未入住")
YEARS = (2022, 2023, 2024, 2025)

SCHEMA = """
CREATE TABLE cities (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE districts (
    id INTEGER PRIMARY KEY, city_id INTEGER NOT NULL REFERENCES cities (id), name TEXT NOT NULL
);
CREATE TABLE hotels (
    id INTEGER PRIMARY KEY, district_id INTEGER NOT NULL REFERENCES districts (id), name TEXT NOT NULL,
    stars INTEGER NOT NULL, rating REAL NOT NULL, opened_on DATE NOT NULL
);
CREATE TABLE rooms (
    id INTEGER PRIMARY KEY, hotel_id INTEGER NOT NULL REFERENCES hotels (id), type TEXT NOT NULL,
    price INTEGER NOT NULL, capacity INTEGER NOT NULL
);
CREATE TABLE customers (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, level TEXT NOT NULL, birth_year INTEGER NOT NULL
);
CREATE TABLE bookings (
    id INTEGER PRIMARY KEY, hotel_id INTEGER NOT NULL REFERENCES hotels (id),
    customer_id INTEGER NOT NULL REFERENCES customers (id), check_in DATE NOT NULL, nights INTEGER NOT NULL,
    total INTEGER NOT NULL, status TEXT NOT NULL
);
CREATE TABLE reviews (
    id INTEGER PRIMARY KEY, hotel_id INTEGER NOT NULL REFERENCES hotels (id),
    customer_id INTEGER NOT NULL REFERENCES customers (id), score INTEGER NOT NULL, posted_on DATE NOT NULL
);
"""


def generate(folder: Path, seed: int) -> None:
    """Write `databases/hotel/hotel.sqlite`, `train.jsonl` and `dev.jsonl` into an existing `folder`.

    A quarter of the districts, hotels, customers, days and numbers never occur in training questions. Every question
    of the split "unseen value" has at least one of them. Questions of the split "unseen wording" use wordings that
    never occur in training. The same seed gives the same bytes.
    """
    generator = random.Random(seed)
    path = folder / "databases" / DATABASE / f"{DATABASE}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        with connection:
            connection.executescript(SCHEMA)
            _fill(connection, generator)
        values = _Values(connection, generator)
        asked: set[str] = set()
        train = list(_questions(connection, values, "train", TRAINING_QUESTIONS_PER_FORM, asked))
        dev = [
            *_questions(connection, values, "unseen value", VALUE_QUESTIONS_PER_FORM, asked),
            *_questions(connection, values, "unseen wording", WORDING_QUESTIONS_PER_FORM, asked),
        ]
    for name, records in (("train", train), ("dev", dev)):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _fill(connection: sqlite3.Connection, generator: random.Random) -> None:
    def insert(table: str, rows: list[tuple[object, ...]]) -> None:
        marks = ", ".join("?" * (len(rows[0]) + 1))
        numbered = ((number, *row) for number, row in enumerate(rows, start=1))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", numbered)

    districts = [(city, name) for city, (_, names) in enumerate(DISTRICTS.items(), 1) for name in names.split()]
    insert("cities", [(name,) for name in DISTRICTS])
    insert("districts", [*districts])
    names = [f"{brand}{landmark}酒店" for brand in BRANDS for landmark in LANDMARKS]
    generator.shuffle(names)
    # Pudong (district 1) gets 16 additional hotels, so that a question about its top ten has to rank them.
    places = [1] * 16 + [1 + index % len(districts) for index in range(len(names) - 16)]
    stars = [generator.choice((2, 3, 3, 4, 4, 5)) for _ in names]
    insert(
        "hotels",
        [
            (
                place,
                name,
                star,
                round(min(5.0, 2.6 + star * 0.35 + generator.uniform(0, 0.7)), 2),
                _day(generator, 1995, 2021),
            )
            for place, name, star in zip(places, names, stars, strict=True)
        ],
    )
    insert(
        "rooms",
        [
            (hotel, kind, round(price * (0.4 + star * 0.25) * generator.uniform(0.9, 1.2) / 10) * 10, capacity)
            for hotel, star in enumerate(stars, start=1)
            for kind, (price, capacity) in ROOM_TYPES.items()
            if generator.random() < 0.7
        ],
    )
    people = sorted({generator.choice(SURNAMES) + generator.choice(GIVEN_NAMES) for _ in range(400)})
    insert("customers", [(name, generator.choice(LEVELS), generator.randint(1955, 2004)) for name in people])
    guests = generator.choices(range(1, len(people) + 1), k=6000)
    stays = [(generator.randint(1, len(names)), guest, generator.randint(1, 6)) for guest in guests]
    insert(
        "bookings",
        [
            (
                hotel,
                guest,
                _day(generator, YEARS[0], YEARS[-1]),
                nights,
                nights * round(stars[hotel - 1] * generator.uniform(80, 260) / 10) * 10,
                generator.choices(STATUSES, (8, 1, 1))[0],
            )
            for hotel, guest, nights in stays
        ],
    )
    insert(
        "reviews",
        [
            (hotel, guest, generator.choices((1, 2, 3, 4, 5), (1, 1, 3, 8, 6))[0], _day(generator, YEARS[0], YEARS[-1]))
            for hotel, guest, _ in stays[::3]
        ],
    )


def _day(generator: random.Random, first: int, last: int) -> str:
    start = date(first, 1, 1)
    return str(start + timedelta(days=generator.randrange((date(last, 12, 31) - start).days + 1)))


@dataclass(frozen=True)
class _Draw:
    values: dict[str, object]
    held_out: frozenset[str]  # names of the values that are held out from training


class _Values:
    """Draws values for questions, and knows which of them are held out from training."""

    def __init__(self, connection: sqlite3.Connection, generator: random.Random) -> None:
        self.random = generator
        self._city_of = dict(
            connection.execute("SELECT districts.name, cities.name FROM districts JOIN cities ON city_id = cities.id")
        )
        first = date(YEARS[0], 1, 1)
        days = [str(first + timedelta(days=offset)) for offset in range(0, 365 * len(YEARS), 3)]
        self._choices: dict[str, list[object]] = {
            "district": list(self._city_of),
            "hotel": [name for (name,) in connection.execute("SELECT name FROM hotels ORDER BY id")],
            "customer": [name for (name,) in connection.execute("SELECT name FROM customers ORDER BY id")],
            "day": [*days],
            "rating": [round(3.4 + tenth / 20, 2) for tenth in range(31)],
            "price": list(range(200, 3000, 20)),
            "limit": list(range(2, 31)),
            "few": list(range(2, 12)),
            "brand": [*BRANDS, *LANDMARKS],
            "year": [*YEARS],
            "stars": [2, 3, 4, 5],
            "room": [*ROOM_TYPES],
            "level": [*LEVELS],
        }
        never_held_out = {"year", "stars", "room", "level"}
        self._held_out = {
            name: set(generator.sample(choices, round(len(choices) * HELD_OUT_SHARE)))
            for name, choices in self._choices.items()
            if name not in never_held_out
        }
        # The district of the README's example question is always held out.
        self._held_out["district"].add("浦东新区")

    def draw(self) -> _Draw:
        """Draw one value for each placeholder; `held_out` has the names of those held out from training."""
        values = {name: self.random.choice(choices) for name, choices in self._choices.items()}
        values |= {f"other_{name}": self.random.choice(self._choices[name]) for name in ("hotel", "day", "year")}
        values["day"], values["other_day"] = sorted((str(values["day"]), str(values["other_day"])))
        values["city"] = self._city_of[str(values["district"])]
        held_out = {
            name for name, value in values.items() if value in self._held_out.get(name.removeprefix("other_"), ())
        }
        return _Draw(values, frozenset(held_out))


def _questions(
    connection: sqlite3.Connection, values: _Values, split: str, count: int, asked: set[str]
) -> Iterator[dict[str, str]]:
    for number, form in enumerate(track(FORMS, f"generating {split} questions", len(FORMS), "forms"), start=1):
        exhausted: set[bool] = set()
        for serial in range(count):
            chinese = serial % 3 != 2
            found = None if chinese in exhausted else _question(connection, values, form, split, chinese, asked)
            if found is None:
                exhausted.add(chinese)
                continue
            asked.add(found[0])
            name = f"{split.replace(' ', '-')}-{number:02d}-{serial:03d}"
            yield {"id": name, "question": found[0], "sql": found[1], "db_id": DATABASE, "split": split}


def _question(
    connection: sqlite3.Connection, values: _Values, form: Form, split: str, chinese: bool, asked: set[str]
) -> tuple[str, str] | None:
    """A new question whose SQL returns rows, and that SQL; None if the form has no more such questions."""
    for _ in range(MAX_DRAWS):
        draw = values.draw()
        wording = form.wording(draw.values, chinese, held_out=split == "unseen wording", choice=values.random)
        unseen = bool(draw.held_out & form.placeholders)
        if unseen != (split == "unseen value") or wording in asked:
            continue
        sql = form.sql.format_map(draw.values)
        row = connection.execute(sql).fetchone()
        if row is not None and row != (None,):
            return wording, sql
    return None
