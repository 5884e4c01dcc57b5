"""Questions and SQL about invented businesses, for training the demo's base model.

Nothing here is about hotels: the student learns about them in the train step only. Values are mostly random characters
and words, so that a correct answer can only copy them from the question.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

# GB2312's first level: the 3,755 most common Chinese characters.
COMMON_CHARACTERS = [
    bytes([row, cell]).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if not (row == 0xD7 and cell > 0xF9)
]
# GB2312's second level: characters without their own token, which are encoded as bytes.
RARE_CHARACTERS = [bytes([row, cell]).decode("gb2312") for row in range(0xD8, 0xF8) for cell in range(0xA1, 0xFF)]
RARE_SHARE = 0.04
SYLLABLES = (
    *("an", "bel", "cor", "da", "el", "fin", "gra", "ho", "in", "jo", "ka", "lu", "mar"),
    *("no", "or", "pe", "qui", "ro", "sa", "ti", "ur", "ve", "wil", "xa", "yor", "zen"),
)
PLACES = (
    *("北京", "天津", "重庆", "沈阳", "大连", "长春", "哈尔滨", "济南", "合肥", "福州", "厦门"),
    *("南昌", "郑州", "长沙", "南宁", "海口", "贵阳", "昆明", "兰州", "西宁", "太原"),
)


@dataclass(frozen=True)
class Noun:
    """A noun of the business: in SQL, in Chinese and in English (plural for things)."""

    sql: str
    chinese: str
    english: str


@dataclass(frozen=True)
class Business:
    """A business with three tables in a chain: a `group` has many `thing`s, a `thing` has many `event`s."""

    name: str
    group: Noun
    thing: Noun
    event: Noun
    category: Noun
    measure: Noun
    amount: Noun
    date: str
    categories: tuple[str, ...]

    @property
    def thing_key(self) -> str:
        """Foreign key from event to thing."""
        return f"{self.thing.sql.rstrip('s')}_id"

    @property
    def group_key(self) -> str:
        """Foreign key from thing to group."""
        return f"{self.group.sql.rstrip('s')}_id"


def _business(name: str, nouns: str, date: str, categories: str) -> Business:
    group, thing, event, category, measure, amount = (Noun(*noun.split("/")) for noun in nouns.split("; "))
    return Business(name, group, thing, event, category, measure, amount, date, tuple(categories.split()))


BUSINESSES = (
    _business(
        "school",
        "towns/城镇/towns; schools/学校/schools; enrolments/报名/enrolments; kind/类型/kind; ranking/排名分/ranking; "
        "fee/学费/fee",
        "enrolled_on",
        "小学 中学 大学 public private",
    ),
    _business(
        "library",
        "branches/分馆/branches; books/图书/books; loans/借阅/loans; genre/体裁/genre; pages/页数/pages; fine/罚款/fine",
        "lent_on",
        "小说 历史 科学 poetry drama",
    ),
    _business(
        "clinic",
        "departments/科室/departments; doctors/医生/doctors; visits/就诊/visits; title/职称/title; "
        "experience/工龄/experience; charge/费用/charge",
        "visited_on",
        "主任 副主任 住院 senior junior",
    ),
    _business(
        "factory",
        "plants/工厂/plants; machines/机器/machines; repairs/维修/repairs; model/型号/model; power/功率/power; "
        "cost/花费/cost",
        "repaired_on",
        "甲型 乙型 丙型 heavy light",
    ),
    _business(
        "airline",
        "hubs/枢纽/hubs; planes/飞机/planes; flights/航班/flights; maker/制造商/maker; seats/座位数/seats; "
        "revenue/收入/revenue",
        "flown_on",
        "商飞 空客 波音 cargo regional",
    ),
    _business(
        "farm",
        "villages/村庄/villages; fields/田地/fields; harvests/收成/harvests; crop/作物/crop; area/面积/area; "
        "weight/重量/weight",
        "cut_on",
        "小麦 水稻 玉米 beans barley",
    ),
    _business(
        "museum",
        "halls/展厅/halls; paintings/画作/paintings; tours/导览/tours; style/风格/style; age/年代/age; "
        "takings/门票收入/takings",
        "toured_on",
        "水墨 油画 版画 modern baroque",
    ),
    _business(
        "bank",
        "offices/网点/offices; accounts/账户/accounts; transfers/转账/transfers; type/种类/type; balance/余额/balance; "
        "value/金额/value",
        "made_on",
        "储蓄 信用 对公 joint basic",
    ),
    _business(
        "cinema",
        "chains/院线/chains; films/电影/films; screenings/放映/screenings; rating_class/分级/class; "
        "score/评分/score; sales/票房/sales",
        "shown_on",
        "动作 喜剧 纪录 horror family",
    ),
    _business(
        "gym",
        "clubs/俱乐部/clubs; coaches/教练/coaches; lessons/课程/lessons; sport/项目/sport; level/等级/level; "
        "payment/付款/payment",
        "held_on",
        "瑜伽 游泳 拳击 tennis rowing",
    ),
    _business(
        "shop",
        "brands/品牌/brands; products/商品/products; orders/订单/orders; colour/颜色/colour; price/价格/price; "
        "total/总价/total",
        "ordered_on",
        "红色 蓝色 黑色 green white",
    ),
    _business(
        "port",
        "harbours/港口/harbours; ships/船只/ships; voyages/航次/voyages; flag/船旗/flag; length/长度/length; "
        "freight/运费/freight",
        "sailed_on",
        "巴拿马 中国 希腊 Malta Norway",
    ),
    _business(
        "theatre",
        "troupes/剧团/troupes; actors/演员/actors; shows/演出/shows; role/行当/role; height/身高/height; "
        "income/收益/income",
        "played_on",
        "青衣 老生 花旦 tenor bass",
    ),
    _business(
        "power",
        "provinces/省份/provinces; stations/电站/stations; outages/停电/outages; fuel/燃料/fuel; "
        "capacity/装机量/capacity; loss/损失/loss",
        "began_on",
        "水电 火电 风电 solar nuclear",
    ),
)


class Values:
    """Random values for one question, from a seeded generator."""

    def __init__(self, generator: random.Random, business: Business) -> None:
        self._random = generator
        self.year = str(generator.randint(2012, 2029))
        self.other_year = str(int(self.year) + generator.choice((1, 2, 3)))
        self.month = generator.randint(1, 12)
        self.limit = generator.randint(2, 40)
        self.number = self._number()
        self.larger = self.number + generator.choice((1, 5, 10, 50, 200))
        self.place = generator.choice(PLACES)
        self.group = self._name()
        self.thing = self._name(business.thing.chinese)
        if generator.random() < 0.15:  # a name that starts like the place's
            self.thing = self.place[0] + self.thing
        self.things = [self._name(business.thing.chinese) for _ in range(generator.randint(2, 6))]
        self.fragment = self._name()[:2]
        self.day, self.later_day = (
            f"{year}-{generator.randint(1, 12):02d}-{generator.randint(1, 31):02d}"
            for year in (self.year, generator.choice((self.year, self.other_year)))
        )

    def _number(self) -> int | float:
        kind = self._random.random()
        if kind < 0.4:
            return round(self._random.uniform(0, 10), self._random.choice((1, 2)))
        return self._random.randint(1, 99) if kind < 0.7 else self._random.randint(10, 500) * 10

    def _character(self) -> str:
        return self._random.choice(RARE_CHARACTERS if self._random.random() < RARE_SHARE else COMMON_CHARACTERS)

    def _name(self, ending: str = "") -> str:
        kind = self._random.random()
        if kind < 0.1:
            return self._random.choice(PLACES)
        if kind < 0.85:
            length = self._random.choice((2, 2, 3, 3, 4, 4, 5, 6, 7))
            name = "".join(self._character() for _ in range(length))
            return name + ending if self._random.random() < 0.3 else name
        return "".join(self._random.choices(SYLLABLES, k=self._random.choice((2, 3)))).capitalize()


def _in_year(column: str, year: str) -> str:
    return f"strftime('%Y', {column}) = '{year}'"


def _simple_forms(b: Business, v: Values, category: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    g, t, c, m = b.group, b.thing, b.category, b.measure
    yield (
        (f"一共有多少{t.chinese}？", f"{t.chinese}总数是多少"),
        (f"How many {t.english} are there?", f"Count all {t.english}"),
        f"SELECT COUNT(*) FROM {t.sql}",
    )
    yield (
        (f"{c.chinese}为{category}的{t.chinese}有多少？", f"统计{c.chinese}是{category}的{t.chinese}数量"),
        (f"How many {t.english} have {c.english} {category}?",),
        f"SELECT COUNT(*) FROM {t.sql} WHERE {c.sql} = '{category}'",
    )
    yield (
        (f"{m.chinese}大于{v.number}的{t.chinese}有哪些？", f"列出{m.chinese}超过{v.number}的{t.chinese}"),
        (f"List the {t.english} with {m.english} above {v.number}",),
        f"SELECT name FROM {t.sql} WHERE {m.sql} > {v.number}",
    )
    yield (
        (f"{m.chinese}最高的{v.limit}个{t.chinese}", f"{m.chinese}排名前{v.limit}的{t.chinese}是哪些"),
        (f"Which {v.limit} {t.english} have the highest {m.english}?", f"Top {v.limit} {t.english} by {m.english}"),
        f"SELECT name FROM {t.sql} ORDER BY {m.sql} DESC LIMIT {v.limit}",
    )
    for chinese, english, function in (
        ("平均", "average", "AVG"),
        ("最高", "highest", "MAX"),
        ("最低", "lowest", "MIN"),
    ):
        yield (
            (f"{c.chinese}为{category}的{t.chinese}的{chinese}{m.chinese}是多少？",),
            (f"What is the {english} {m.english} of {t.english} with {c.english} {category}?",),
            f"SELECT {function}({m.sql}) FROM {t.sql} WHERE {c.sql} = '{category}'",
        )
    yield (
        (f"每种{c.chinese}各有多少{t.chinese}？", f"按{c.chinese}统计{t.chinese}数"),
        (f"How many {t.english} per {c.english}?",),
        f"SELECT {c.sql}, COUNT(*) FROM {t.sql} GROUP BY {c.sql}",
    )
    yield (
        (f"哪些{c.chinese}的{t.chinese}超过{v.limit}个？",),
        (f"Which {c.english} have more than {v.limit} {t.english}?",),
        f"SELECT {c.sql} FROM {t.sql} GROUP BY {c.sql} HAVING COUNT(*) > {v.limit}",
    )
    yield (
        (f"{m.chinese}在{v.number}到{v.larger}之间的{t.chinese}",),
        (f"{t.english} with {m.english} between {v.number} and {v.larger}",),
        f"SELECT name FROM {t.sql} WHERE {m.sql} BETWEEN {v.number} AND {v.larger}",
    )
    yield (
        (f"名称包含{v.fragment}的{t.chinese}", f"名字里有{v.fragment}的{t.chinese}有哪些"),
        (f"{t.english} whose name contains {v.fragment}",),
        f"SELECT name FROM {t.sql} WHERE name LIKE '%{v.fragment}%'",
    )
    yield (
        (f"{v.thing}的{m.chinese}是多少？",),
        (f"What is the {m.english} of {v.thing}?",),
        f"SELECT {m.sql} FROM {t.sql} WHERE name = '{v.thing}'",
    )
    yield (
        (f"列出所有{g.chinese}",),
        (f"List all {g.english}",),
        f"SELECT name FROM {g.sql}",
    )


def _list_forms(b: Business, v: Values, category: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    g, t, m = b.group, b.thing, b.measure
    quoted = ", ".join(f"'{name}'" for name in v.things)
    chinese = "、".join(v.things)
    english = f"{', '.join(v.things[:-1])} and {v.things[-1]}"
    for chosen in (t, g):
        yield (
            (f"{chosen.chinese}{chinese}的编号", f"{chinese}的{chosen.chinese}编号是多少"),
            (f"Ids of the {chosen.english} {english}",),
            f"SELECT id FROM {chosen.sql} WHERE name IN ({quoted})",
        )
    yield (
        (f"{chinese}的{m.chinese}分别是多少？", f"列出{t.chinese}{chinese}的{m.chinese}"),
        (f"The {m.english} of {english}", f"Compare the {m.english} of the {t.english} {english}"),
        f"SELECT name, {m.sql} FROM {t.sql} WHERE name IN ({quoted})",
    )
    yield (
        (f"除了{chinese}之外有多少{category}{t.chinese}？",),
        (f"How many {category} {t.english} are there besides {english}?",),
        f"SELECT COUNT(*) FROM {t.sql} WHERE name NOT IN ({quoted}) AND {b.category.sql} = '{category}'",
    )


def _join_forms(b: Business, v: Values, category: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    g, t, e, c, m, a = b.group, b.thing, b.event, b.category, b.measure, b.amount
    to_group = f"JOIN {g.sql} ON {t.sql}.{b.group_key} = {g.sql}.id"
    to_thing = f"JOIN {t.sql} ON {e.sql}.{b.thing_key} = {t.sql}.id"
    date = f"{e.sql}.{b.date}"
    yield (
        (f"{v.group}有多少{t.chinese}？", f"统计{v.group}的{t.chinese}数量"),
        (f"How many {t.english} are in {v.group}?",),
        f"SELECT COUNT(*) FROM {t.sql} {to_group} WHERE {g.sql}.name = '{v.group}'",
    )
    yield (
        (f"{v.group}{c.chinese}为{category}的{t.chinese}按{m.chinese}从高到低", f"{v.group}的{category}{t.chinese}"),
        (f"{t.english} of {c.english} {category} in {v.group}, highest {m.english} first",),
        f"SELECT {t.sql}.name FROM {t.sql} {to_group} WHERE {g.sql}.name = '{v.group}' AND {t.sql}.{c.sql} = "
        f"'{category}' ORDER BY {t.sql}.{m.sql} DESC",
    )
    yield (
        (f"{v.thing}在{v.year}年有多少{e.chinese}？", f"{v.year}年{v.thing}的{e.chinese}数"),
        (f"How many {e.english} did {v.thing} have in {v.year}?",),
        f"SELECT COUNT(*) FROM {e.sql} {to_thing} WHERE {t.sql}.name = '{v.thing}' AND {_in_year(date, v.year)}",
    )
    yield (
        (f"{v.year}年{v.group}的{e.chinese}总{a.chinese}", f"{v.group}{v.year}年{a.chinese}合计多少？"),
        (f"Total {a.english} of {e.english} in {v.group} in {v.year}",),
        f"SELECT SUM({e.sql}.{a.sql}) FROM {e.sql} {to_thing} {to_group} WHERE {g.sql}.name = '{v.group}' AND "
        f"{_in_year(date, v.year)}",
    )
    yield (
        (f"{v.year}年{v.month}月有多少{e.chinese}？", f"{v.year}年{v.month}月的{e.chinese}量"),
        (f"How many {e.english} were there in month {v.month} of {v.year}?",),
        f"SELECT COUNT(*) FROM {e.sql} WHERE strftime('%Y-%m', {b.date}) = '{v.year}-{v.month:02d}'",
    )
    yield (
        (f"{v.year}年{v.group}{m.chinese}前{v.limit}的{t.chinese}的{e.chinese}量",),
        (f"Number of {e.english} in {v.year} of the top {v.limit} {t.english} by {m.english} in {v.group}",),
        f"SELECT {t.sql}.name, COUNT({e.sql}.id) FROM {t.sql} {to_group} LEFT JOIN {e.sql} ON {e.sql}.{b.thing_key} = "
        f"{t.sql}.id AND {_in_year(date, v.year)} WHERE {g.sql}.name = '{v.group}' GROUP BY {t.sql}.id ORDER BY "
        f"{t.sql}.{m.sql} DESC LIMIT {v.limit}",
    )
    yield (
        (f"{v.year}年{a.chinese}最多的{v.limit}个{g.chinese}",),
        (f"The {v.limit} {g.english} with the most {a.english} in {v.year}",),
        f"SELECT {g.sql}.name FROM {e.sql} {to_thing} {to_group} WHERE {_in_year(date, v.year)} GROUP BY {g.sql}.id "
        f"ORDER BY SUM({e.sql}.{a.sql}) DESC LIMIT {v.limit}",
    )
    yield (
        (f"从{v.day}到{v.later_day}有多少{e.chinese}？",),
        (f"How many {e.english} from {v.day} to {v.later_day}?",),
        f"SELECT COUNT(*) FROM {e.sql} WHERE {b.date} BETWEEN '{v.day}' AND '{v.later_day}'",
    )
    yield (
        (f"{v.day}的{e.chinese}及{a.chinese}", f"列出{v.day}当天的{e.chinese}和{a.chinese}"),
        (f"List the {e.english} of {v.day} and their {a.english}",),
        f"SELECT id, {a.sql} FROM {e.sql} WHERE {b.date} = '{v.day}'",
    )
    yield (
        (
            f"{v.day}以后{a.chinese}不低于{v.number}的{e.chinese}",
            f"{v.day}起有哪些{e.chinese}的{a.chinese}达到{v.number}",
        ),
        (f"{e.english} since {v.day} with {a.english} of at least {v.number}",),
        f"SELECT id FROM {e.sql} WHERE {b.date} >= '{v.day}' AND {a.sql} >= {v.number}",
    )
    yield (
        (f"{v.place}{v.thing}的{m.chinese}是多少？", f"查一下{v.place}{v.thing}的{m.chinese}"),
        (f"What is the {m.english} of {v.thing} in {v.place}?",),
        f"SELECT {t.sql}.{m.sql} FROM {t.sql} {to_group} WHERE {g.sql}.name = '{v.place}' AND {t.sql}.name = '{v.thing}'",
    )
    yield (
        (f"{v.year}年{v.place}{v.thing}的{e.chinese}量", f"{v.place}{v.thing}{v.year}年有多少{e.chinese}？"),
        (f"How many {e.english} did {v.thing} in {v.place} have in {v.year}?",),
        f"SELECT COUNT(*) FROM {e.sql} {to_thing} {to_group} WHERE {g.sql}.name = '{v.place}' AND {t.sql}.name = "
        f"'{v.thing}' AND {_in_year(date, v.year)}",
    )
    yield (
        (f"每个{g.chinese}的平均{m.chinese}",),
        (f"Average {m.english} of the {t.english} in each of the {g.english}",),
        f"SELECT {g.sql}.name, AVG({t.sql}.{m.sql}) FROM {t.sql} {to_group} GROUP BY {g.sql}.id",
    )


def _nested_forms(b: Business, v: Values, category: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    g, t, e, c, m, a = b.group, b.thing, b.event, b.category, b.measure, b.amount
    in_year = f"SELECT {b.thing_key} FROM {e.sql} WHERE {_in_year(b.date, v.year)}"
    in_other_year = f"SELECT {b.thing_key} FROM {e.sql} WHERE {_in_year(b.date, v.other_year)}"
    yield (
        (f"{m.chinese}高于平均值的{t.chinese}", f"哪些{t.chinese}的{m.chinese}比平均高"),
        (f"{t.english} with {m.english} above the average",),
        f"SELECT name FROM {t.sql} WHERE {m.sql} > (SELECT AVG({m.sql}) FROM {t.sql})",
    )
    yield (
        (f"{v.year}年没有{e.chinese}的{t.chinese}",),
        (f"{t.english} without {e.english} in {v.year}",),
        f"SELECT name FROM {t.sql} WHERE id NOT IN ({in_year})",
    )
    yield (
        (f"有过{a.chinese}超过{v.number}的{e.chinese}的{t.chinese}",),
        (f"{t.english} that had {e.english} with {a.english} over {v.number}",),
        f"SELECT name FROM {t.sql} WHERE id IN (SELECT {b.thing_key} FROM {e.sql} WHERE {a.sql} > {v.number})",
    )
    yield (
        (f"{v.year}年和{v.other_year}年都有{e.chinese}的{t.chinese}编号",),
        (f"Ids of {t.english} with {e.english} in both {v.year} and {v.other_year}",),
        f"{in_year} INTERSECT {in_other_year}",
    )
    yield (
        (f"{v.year}年有{e.chinese}但{v.other_year}年没有的{t.chinese}编号",),
        (f"Ids of {t.english} with {e.english} in {v.year} but not in {v.other_year}",),
        f"{in_year} EXCEPT {in_other_year}",
    )
    yield (
        (
            f"{v.day}或{v.later_day}有{e.chinese}的{t.chinese}编号",
            f"哪些{t.chinese}在{v.day}或者{v.later_day}有{e.chinese}",
        ),
        (f"Ids of {t.english} with {e.english} on {v.day} or {v.later_day}",),
        f"SELECT {b.thing_key} FROM {e.sql} WHERE {b.date} = '{v.day}' UNION SELECT {b.thing_key} FROM {e.sql} WHERE "
        f"{b.date} = '{v.later_day}'",
    )
    yield (
        (
            f"{v.day}之前没有{e.chinese}的{category}{t.chinese}",
            f"{v.day}前从无{e.chinese}的{category}{t.chinese}有哪些",
        ),
        (f"{category} {t.english} without {e.english} before {v.day}",),
        f"SELECT name FROM {t.sql} WHERE {c.sql} = '{category}' AND id NOT IN (SELECT {b.thing_key} FROM {e.sql} WHERE "
        f"{b.date} < '{v.day}')",
    )
    yield (
        (
            f"{m.chinese}大于{v.number}但不属于{v.group}的{t.chinese}",
            f"除了{v.group}以外{m.chinese}超过{v.number}的{t.chinese}",
        ),
        (f"{t.english} with {m.english} above {v.number} that are not in {v.group}",),
        f"SELECT name FROM {t.sql} WHERE {m.sql} > {v.number} EXCEPT SELECT {t.sql}.name FROM {t.sql} JOIN {g.sql} ON "
        f"{t.sql}.{b.group_key} = {g.sql}.id WHERE {g.sql}.name = '{v.group}'",
    )
    yield (
        (f"{v.year}年和{v.other_year}年都有超过{v.number}的{a.chinese}的{t.chinese}编号",),
        (f"Ids of {t.english} with {a.english} over {v.number} in both {v.year} and {v.other_year}",),
        f"{in_year} AND {a.sql} > {v.number} INTERSECT {in_other_year} AND {a.sql} > {v.number}",
    )
    yield (
        (f"{c.chinese}为{category}或者{m.chinese}大于{v.number}的{t.chinese}",),
        (f"{t.english} of {c.english} {category} or with {m.english} above {v.number}",),
        f"SELECT name FROM {t.sql} WHERE {c.sql} = '{category}' UNION SELECT name FROM {t.sql} WHERE {m.sql} > {v.number}",
    )
    yield (
        (f"按{m.chinese}给{category}{t.chinese}排名",),
        (f"Rank the {category} {t.english} by {m.english}",),
        f"SELECT name, RANK() OVER (ORDER BY {m.sql} DESC) FROM {t.sql} WHERE {c.sql} = '{category}'",
    )
    yield (
        (f"每种{c.chinese}{m.chinese}最高的{v.limit}个{t.chinese}",),
        (f"The {v.limit} {t.english} with the highest {m.english} of each {c.english}",),
        f"SELECT name FROM (SELECT name, ROW_NUMBER() OVER (PARTITION BY {c.sql} ORDER BY {m.sql} DESC) AS position "
        f"FROM {t.sql}) WHERE position <= {v.limit}",
    )
    yield (
        (f"{v.year}年按月累计的{a.chinese}",),
        (f"Running monthly total of {a.english} in {v.year}",),
        f"SELECT strftime('%m', {b.date}) AS month, SUM(SUM({a.sql})) OVER (ORDER BY strftime('%m', {b.date})) "
        f"FROM {e.sql} WHERE {_in_year(b.date, v.year)} GROUP BY month",
    )
    yield (
        (f"{v.group}{m.chinese}最高的{t.chinese}",),
        (f"Which of the {t.english} in {v.group} has the highest {m.english}?",),
        f"SELECT name FROM {t.sql} WHERE {b.group_key} = (SELECT id FROM {g.sql} WHERE name = '{v.group}') "
        f"ORDER BY {m.sql} DESC LIMIT 1",
    )


def questions(seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield (database name, question, SQL) without end; the same seed yields the same."""
    generator = random.Random(seed)
    while True:
        business = generator.choice(BUSINESSES)
        values = Values(generator, business)
        category = generator.choice(business.categories)
        if generator.random() < 0.3:
            category = values.fragment
        family = generator.choice((_simple_forms, _list_forms, _join_forms, _nested_forms))
        chinese, english, sql = generator.choice(list(family(business, values, category)))
        yield business.name, generator.choice(chinese if generator.random() < 0.65 else english), sql
