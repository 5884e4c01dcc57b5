"""Templates of the hotel demo's questions: SQL, and several wordings in Chinese and English."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

TO_DISTRICT = "JOIN districts ON hotels.district_id = districts.id"
TO_CITY = f"{TO_DISTRICT} JOIN cities ON districts.city_id = cities.id"
TO_HOTEL = "JOIN hotels ON bookings.hotel_id = hotels.id"
TO_CUSTOMER = "JOIN customers ON bookings.customer_id = customers.id"
IN_YEAR = "strftime('%Y', bookings.check_in) = '{year}'"


@dataclass(frozen=True)
class Form:
    """A SQL template and its wordings. The last wording of each language is held out from training."""

    sql: str
    chinese: tuple[str, ...]
    english: tuple[str, ...]

    @property
    def placeholders(self) -> frozenset[str]:
        """Names of the placeholders in the SQL."""
        return frozenset(name for _, name, _, _ in Formatter().parse(self.sql) if name)

    def wording(self, values: Mapping[str, object], chinese: bool, held_out: bool, choice: random.Random) -> str:
        """Fill `values` into a wording: a random one of those for training, or the held-out one.

        Args:
            values: a value for each placeholder.
            chinese: whether the wording is Chinese; otherwise it is English.
            held_out: whether to use the held-out wording.
            choice: random generator that chooses the wording.
        """
        wordings = self.chinese if chinese else self.english
        return (wordings[-1] if held_out else choice.choice(wordings[:-1])).format_map(values)


SINGLE_TABLE = (
    Form(
        "SELECT name FROM hotels WHERE stars = {stars} AND rating > {rating}",
        (
            "评分高于{rating}的{stars}星级酒店有哪些？",
            "列出{stars}星级里评分超过{rating}的酒店",
            "{stars}星级酒店中哪些评分大于{rating}",
        ),
        ("Which {stars}-star hotels are rated above {rating}?", "Show {stars}-star hotels with rating over {rating}"),
    ),
    Form(
        "SELECT name FROM hotels ORDER BY rating DESC LIMIT {limit}",
        ("评分最高的{limit}家酒店", "评分排名前{limit}的酒店是哪些", "请给出评分前{limit}名的酒店"),
        ("Which {limit} hotels have the highest rating?", "Name the best rated {limit} hotels"),
    ),
    Form(
        "SELECT stars, rating FROM hotels WHERE name = '{hotel}'",
        ("{hotel}是几星级，评分多少？", "查询{hotel}的星级和评分", "告诉我{hotel}的星级与评分"),
        ("What are the stars and rating of {hotel}?", "Stars and rating of {hotel}, please"),
    ),
    Form(
        "SELECT id, total FROM bookings WHERE check_in = '{day}'",
        ("{day}入住的订单及金额", "列出{day}入住的订单和金额", "哪些订单是{day}入住的，金额多少"),
        ("List the bookings with check-in on {day} and their totals", "Bookings checking in on {day} with totals"),
    ),
    Form(
        "SELECT name FROM hotels WHERE name LIKE '%{brand}%'",
        ("名称包含{brand}的酒店", "名字里有{brand}的酒店有哪些", "找出名称带{brand}的酒店"),
        ("Hotels whose name contains {brand}", "Find hotels with {brand} in their name"),
    ),
    Form(
        "SELECT id, price FROM rooms WHERE type = '{room}' AND price < {price}",
        ("价格低于{price}元的{room}有哪些？", "列出不到{price}元的{room}", "找便宜过{price}元的{room}"),
        ("List every {room} cheaper than {price}", "Which {room} costs less than {price}?"),
    ),
    Form(
        "SELECT level, birth_year FROM customers WHERE name = '{customer}'",
        (
            "客户{customer}的会员等级和出生年份",
            "查询{customer}的等级和出生年份",
            "{customer}是什么等级的会员，哪年出生",
        ),
        ("What are the level and birth year of customer {customer}?", "Level and birth year of {customer}"),
    ),
)

AGGREGATE = (
    Form(
        "SELECT AVG(rating) FROM hotels WHERE stars = {stars} AND opened_on < '{day}'",
        (
            "{day}之前开业的{stars}星级酒店的平均评分",
            "{stars}星级且{day}前开业的酒店平均评分多少",
            "求{day}前开业的{stars}星酒店评分均值",
        ),
        (
            "Average rating of {stars}-star hotels opened before {day}",
            "Mean rating of {stars}-star hotels from before {day}",
        ),
    ),
    Form(
        "SELECT COUNT(*) FROM rooms WHERE price > {price}",
        ("价格超过{price}元的房间有多少间？", "统计高于{price}元的房间数", "多少房间的价格大于{price}元"),
        ("How many rooms cost more than {price}?", "Count the rooms above {price}"),
    ),
    Form(
        "SELECT SUM(total) FROM bookings WHERE check_in BETWEEN '{day}' AND '{other_day}'",
        (
            "从{day}到{other_day}的订单总金额",
            "{day}至{other_day}订单金额合计多少？",
            "求{day}到{other_day}之间的订单总额",
        ),
        ("Total amount of bookings from {day} to {other_day}", "Sum of booking totals between {day} and {other_day}"),
    ),
    Form(
        "SELECT type, COUNT(*) FROM rooms WHERE price > {price} GROUP BY type",
        (
            "每种房型价格超过{price}元的各有多少间？",
            "按房型统计高于{price}元的房间数",
            "各房型中超过{price}元的房间数量",
        ),
        ("How many rooms above {price} are there of each type?", "Per room type, count rooms over {price}"),
    ),
    Form(
        "SELECT stars, COUNT(*) FROM hotels WHERE rating >= {rating} GROUP BY stars",
        (
            "各星级评分不低于{rating}的酒店有多少家？",
            "按星级统计评分至少{rating}的酒店数",
            "每个星级有几家酒店评分达到{rating}",
        ),
        (
            "How many hotels of each star class are rated at least {rating}?",
            "Per star class, count hotels rated {rating} or more",
        ),
    ),
    Form(
        "SELECT customer_id FROM bookings WHERE strftime('%Y', check_in) = '{year}' GROUP BY customer_id HAVING COUNT(*) > {few}",
        ("{year}年订单超过{few}单的客户编号", "哪些客户{year}年下单多于{few}次", "{year}年内订单数大于{few}的客户编号"),
        (
            "Ids of customers with more than {few} bookings in {year}",
            "Which customer ids booked over {few} times in {year}?",
        ),
    ),
)

JOIN = (
    Form(
        f"SELECT COUNT(*) FROM hotels {TO_CITY} WHERE cities.name = '{{city}}' AND hotels.rating > {{rating}}",
        (
            "{city}有多少家评分超过{rating}的酒店？",
            "统计{city}评分高于{rating}的酒店数量",
            "{city}评分大于{rating}的酒店一共几家",
        ),
        ("How many hotels in {city} are rated above {rating}?", "Count hotels in {city} with rating over {rating}"),
    ),
    Form(
        f"SELECT hotels.name FROM hotels {TO_DISTRICT} WHERE districts.name = '{{district}}'",
        ("{district}有哪些酒店？", "列出{district}的酒店", "{district}的酒店都有哪几家"),
        ("Which hotels are in {district}?", "Name the hotels of {district}"),
    ),
    Form(
        f"SELECT hotels.name FROM hotels {TO_CITY} WHERE cities.name = '{{city}}' AND districts.name = '{{district}}' "
        "ORDER BY hotels.rating DESC LIMIT {limit}",
        (
            "{city}{district}评分前{limit}的酒店",
            "{city}{district}评分最高的{limit}家酒店是哪些？",
            "给出{city}{district}评分排前{limit}的酒店",
        ),
        ("Top {limit} hotels by rating in {district}, {city}", "The {limit} best rated hotels of {district} in {city}"),
    ),
    Form(
        f"SELECT hotels.name, COUNT(bookings.id) FROM hotels {TO_CITY} LEFT JOIN bookings ON bookings.hotel_id = "
        f"hotels.id AND {IN_YEAR} WHERE cities.name = '{{city}}' AND districts.name = '{{district}}' "
        "GROUP BY hotels.id ORDER BY hotels.rating DESC LIMIT {limit}",
        (
            "{year}年{city}{district}评分前{limit}的酒店订单量",
            "{city}{district}评分前{limit}的酒店在{year}年的订单量是多少？",
            "{city}{district}评分最高的{limit}家酒店{year}年各有多少订单",
        ),
        (
            "Number of bookings in {year} of the top {limit} hotels by rating in {district}, {city}",
            "How many bookings did the {limit} best rated hotels of {district}, {city} have in {year}?",
        ),
    ),
    Form(
        f"SELECT COUNT(*) FROM bookings {TO_HOTEL} WHERE hotels.name = '{{hotel}}' AND {IN_YEAR}",
        ("{hotel}在{year}年有多少订单？", "{year}年{hotel}的订单数", "统计{hotel}{year}年的订单数量"),
        ("How many bookings did {hotel} have in {year}?", "Number of {year} bookings at {hotel}"),
    ),
    Form(
        "SELECT rooms.type, rooms.price FROM rooms JOIN hotels ON rooms.hotel_id = hotels.id WHERE hotels.name = '{hotel}'",
        ("{hotel}有哪些房型，价格多少？", "列出{hotel}的房型和价格", "{hotel}各房型的价格"),
        ("Which room types does {hotel} have, at what price?", "Room types and prices of {hotel}"),
    ),
    Form(
        f"SELECT SUM(bookings.total) FROM bookings {TO_CUSTOMER} WHERE customers.name = '{{customer}}' AND {IN_YEAR}",
        ("客户{customer}在{year}年的消费总额", "{customer}{year}年一共消费多少？", "求{customer}在{year}年的总消费"),
        ("How much did customer {customer} spend in {year}?", "Total spending of {customer} in {year}"),
    ),
    Form(
        "SELECT AVG(reviews.score) FROM reviews JOIN hotels ON reviews.hotel_id = hotels.id WHERE hotels.name = '{hotel}'",
        ("{hotel}的平均评论分是多少？", "求{hotel}评论的平均分", "{hotel}的客人评论平均几分"),
        ("What is the average review score of {hotel}?", "Mean review score for {hotel}"),
    ),
    Form(
        f"SELECT hotels.name FROM bookings {TO_HOTEL} WHERE {IN_YEAR} GROUP BY hotels.id ORDER BY COUNT(*) DESC LIMIT {{limit}}",
        (
            "{year}年订单最多的{limit}家酒店",
            "{year}年订单量排名前{limit}的酒店是哪些？",
            "哪{limit}家酒店{year}年的订单最多",
        ),
        ("The {limit} hotels with the most bookings in {year}", "Which {limit} hotels had most bookings in {year}?"),
    ),
)

SUBQUERY = (
    Form(
        "SELECT name FROM hotels WHERE rating > (SELECT AVG(rating) FROM hotels) AND district_id IN "
        "(SELECT id FROM districts WHERE name = '{district}')",
        (
            "{district}评分高于平均值的酒店",
            "{district}哪些酒店的评分比平均高？",
            "找出{district}里评分超过总体平均的酒店",
        ),
        (
            "Hotels in {district} with a rating above the average",
            "Which hotels of {district} are rated better than average?",
        ),
    ),
    Form(
        "SELECT name FROM hotels WHERE stars = {stars} AND id NOT IN (SELECT hotel_id FROM bookings WHERE check_in >= '{day}')",
        (
            "{day}以后没有订单的{stars}星级酒店",
            "哪些{stars}星级酒店从{day}起没有订单？",
            "{day}起无人预订的{stars}星酒店",
        ),
        ("{stars}-star hotels without bookings since {day}", "Which {stars}-star hotels had no booking from {day} on?"),
    ),
    Form(
        "SELECT name FROM customers WHERE level = '{level}' AND id IN (SELECT customer_id FROM bookings WHERE total > {price})",
        (
            "有过超过{price}元订单的{level}会员",
            "哪些{level}会员下过高于{price}元的订单？",
            "单笔订单曾大于{price}元的{level}会员",
        ),
        (
            "{level} customers that had a booking over {price}",
            "Which {level} customers once paid more than {price} for a booking?",
        ),
    ),
    Form(
        f"SELECT name FROM customers WHERE id IN (SELECT bookings.customer_id FROM bookings {TO_HOTEL} WHERE hotels.name = '{{hotel}}')",
        ("订过{hotel}的客户有哪些？", "列出在{hotel}下过单的客户", "哪些客户预订过{hotel}"),
        ("Which customers have booked {hotel}?", "Names of customers with a booking at {hotel}"),
    ),
)

WINDOW_FUNCTION = (
    Form(
        f"SELECT hotels.name, RANK() OVER (ORDER BY hotels.rating DESC) FROM hotels {TO_DISTRICT} WHERE districts.name = '{{district}}'",
        ("按评分给{district}的酒店排名", "{district}酒店的评分名次", "把{district}的酒店按评分排出名次"),
        ("Rank the hotels of {district} by rating", "Give each hotel in {district} its rank by rating"),
    ),
    Form(
        "SELECT name FROM (SELECT name, ROW_NUMBER() OVER (PARTITION BY stars ORDER BY rating DESC) AS position FROM hotels) "
        "WHERE position <= {limit}",
        ("每个星级评分最高的{limit}家酒店", "各星级评分前{limit}的酒店有哪些？", "列出每种星级里评分排前{limit}的酒店"),
        ("The {limit} hotels with the highest rating of each star class", "Best {limit} rated hotels per star class"),
    ),
    Form(
        "SELECT strftime('%m', check_in) AS month, SUM(COUNT(*)) OVER (ORDER BY strftime('%m', check_in)) FROM bookings "
        "WHERE strftime('%Y', check_in) = '{year}' AND total > {price} GROUP BY month",
        (
            "{year}年超过{price}元的订单按月累计数",
            "{year}年金额高于{price}元的订单逐月累计多少？",
            "按月累计{year}年大于{price}元的订单数",
        ),
        (
            "Running monthly count of bookings over {price} in {year}",
            "Cumulative count by month of {year} bookings above {price}",
        ),
    ),
)

SET_OPERATION = (
    Form(
        "SELECT hotel_id FROM bookings WHERE check_in = '{day}' UNION SELECT hotel_id FROM bookings WHERE check_in = '{other_day}'",
        (
            "{day}或{other_day}有人入住的酒店编号",
            "哪些酒店在{day}或者{other_day}有订单入住",
            "求{day}或{other_day}入住的酒店编号",
        ),
        (
            "Ids of hotels with a check-in on {day} or {other_day}",
            "Which hotel ids had check-ins on {day} or on {other_day}?",
        ),
    ),
    Form(
        "SELECT customer_id FROM bookings WHERE total > {price} AND strftime('%Y', check_in) = '{year}' INTERSECT "
        "SELECT customer_id FROM bookings WHERE total > {price} AND strftime('%Y', check_in) = '{other_year}'",
        (
            "{year}年和{other_year}年都有超过{price}元订单的客户编号",
            "在{year}年与{other_year}年均下过高于{price}元订单的客户",
            "哪些客户{year}年、{other_year}年都有大于{price}元的订单",
        ),
        (
            "Ids of customers with a booking over {price} in both {year} and {other_year}",
            "Customer ids paying above {price} in {year} and again in {other_year}",
        ),
    ),
    Form(
        "SELECT name FROM hotels WHERE rating > {rating} EXCEPT SELECT hotels.name FROM hotels JOIN districts ON "
        "hotels.district_id = districts.id WHERE districts.name = '{district}'",
        (
            "评分高于{rating}但不在{district}的酒店",
            "除了{district}以外评分超过{rating}的酒店",
            "不在{district}而且评分大于{rating}的酒店有哪些",
        ),
        (
            "Hotels rated above {rating} that are not in {district}",
            "Hotels outside {district} with rating over {rating}",
        ),
    ),
)

FORMS = (*SINGLE_TABLE, *AGGREGATE, *JOIN, *SUBQUERY, *WINDOW_FUNCTION, *SET_OPERATION)
