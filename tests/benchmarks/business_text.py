"""Business text in which a question can hide: seeded, in English and Chinese, with mentions of other tables."""

import random
from collections.abc import Callable, Sequence

_PEOPLE = {
    "en": ["Anna", "Tom", "Priya", "Carlos", "Mei", "Fatima", "Lars", "Olga"],
    "zh": ["小王", "李经理", "张总", "陈工", "刘姐", "赵敏"],
}
_PLACES = {
    "en": ["Lisbon", "Denver", "Osaka", "Leeds", "Turin", "Nairobi"],
    "zh": ["苏州", "成都", "厦门", "长沙", "沈阳", "昆明"],
}
_DAYS = {"en": ["Monday", "Tuesday", "Thursday", "Friday"], "zh": ["周一", "周二", "周四", "下周三"]}
# Small talk; sentences with numbers, dates, comparisons and negations; mentions of tables and columns; questions and
# requests that are not for the database.
_SENTENCES = {
    "en": (
        "Thank you for your patience over the last weeks.",
        "{person} is back from {place} and sends her regards.",
        "We moved the team meeting to {day}, because the large room was taken.",
        "The coffee machine on the third floor works again.",
        "I hope that this finds you well.",
        "Our agreement is governed by the laws of {place}, and neither party may assign it without consent.",
        "The budget for {year} is {number} % lower than that of the year before.",
        "Not more than {number} people signed up for the course, which was less than expected.",
        "At least {number} invoices were paid late, and none of them was disputed before {day}.",
        "In {year} we had {number} offices, the largest of them in {place}.",
        "{person} cleaned up the table of {table} last week and removed {number} duplicates.",
        "The column {column} of {table} was empty for some time, but that is solved.",
        "Please remember that {table} will be archived at the end of {year}.",
        "There was a discussion about {column} in the last review, without a result.",
        "{person} presented a slide about {table} and {column}, which I attach.",
        "Could you let me know whether {day} works for you?",
        "Did {person} send you the contract?",
        "Please forward this to {person} before {day}.",
        "Who is going to book the flight to {place}?",
        "Send me the slides when you have a minute.",
    ),
    "zh": (
        "感谢大家这几周的支持。",
        "{person}从{place}回来了，向大家问好。",
        "例会改到{day}，因为大会议室被占用了。",
        "三楼的咖啡机已经修好了。",
        "本协议适用{place}的法律，未经同意任何一方不得转让。",
        "{year}年的预算比上一年低{number}%。",
        "报名培训的不超过{number}人，比预期的少。",
        "至少有{number}张发票付款晚了，但没有一张在{day}之前有争议。",
        "{year}年我们有{number}个办公室，最大的在{place}。",
        "{person}上周整理了{table}表，删除了{number}条重复记录。",
        "{table}的{column}字段有一段时间是空的，现在已经解决。",
        "请注意{table}将在{year}年底归档。",
        "上次评审讨论过{column}，没有结论。",
        "{day}您方便吗？",
        "{person}把合同发给您了吗？",
        "请在{day}之前转给{person}。",
        "谁来订去{place}的机票？",
    ),
}


def hide(
    question: str, language: str, names: Sequence[tuple[str, str]], tokens: int, count: Callable[[str], int], seed: str
) -> str:
    """A text of about `tokens` tokens with a question at a random place.

    Args:
        question: the question.
        language: "en" or "zh".
        names: tables with a column of each, which the text mentions.
        tokens: length of the text.
        count: counts the tokens of a text.
        seed: of everything that is drawn.
    """
    generator = random.Random(seed)
    space = " " if language == "en" else ""

    def sentence() -> str:
        table, column = generator.choice(names)
        return generator.choice(_SENTENCES[language]).format(
            person=generator.choice(_PEOPLE[language]),
            place=generator.choice(_PLACES[language]),
            day=generator.choice(_DAYS[language]),
            year=generator.randint(2001, 2025),
            number=generator.randint(3, 900),
            table=table,
            column=column,
        )

    parts: list[str] = []
    length = 0
    while length < tokens:
        # A paragraph ends now and then.
        parts.append(sentence() + ("\n\n" if generator.random() < 0.15 else space))
        length += count(parts[-1])
    ended = question if question.rstrip()[-1:] in ".?!。？！" else f"{question.rstrip()}{'.' if space else '。'}"
    parts.insert(generator.randint(0, len(parts)), ended + space)
    return "".join(parts).strip()
