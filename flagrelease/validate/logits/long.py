"""Long contexts by rule: registers of entries, with questions whose answers stand thousands of tokens before them.

They reach what short texts do not: compressed entries far outside the window, and an indexer that has to choose.
"""

from __future__ import annotations

from flagrelease.validate.logits.sequence import Numbers

_BARGES = ("Heron", "Otter", "Plover", "Marten", "Curlew", "Lapwing", "Badger", "Wren")
_GOODS = ("salt", "barley", "slate", "lamp oil", "glass", "rope", "honey", "timber")
_PLACES = ("Alder Lock", "Maple Quay", "Stone Bridge", "Willow Basin", "Northgate", "Mill Weir", "Chalk Wharf")
_KEEPERS = ("Ines", "Tomas", "Greta", "Aldo", "Miriam", "Pavel", "Noor", "Stellan")
_BOATS_ZH = ("青鹭", "白鹤", "红隼", "灰雁", "翠鸟", "黑颈")
_GOODS_ZH = ("盐", "茶叶", "瓷器", "木材", "丝绸", "稻米")
_PLACES_ZH = ("柳浦", "石桥", "枫林渡", "望江亭", "北门闸", "磨坊口")
_KEEPERS_ZH = ("陈禾", "林岸", "周启明", "苏澜", "何远山", "顾青")
_ENTRIES = {"english": 560, "chinese": 330}
_ASK_EVERY = 20


def long_documents() -> list[tuple[str, str]]:
    """(name, text): an English register of more than 16384 tokens, a Chinese one of some thousands."""
    return [("river register", _english(Numbers(9001))), ("渡口登记", _chinese(Numbers(9002)))]


def _english(numbers: Numbers) -> str:
    lines, seen = ["Register of the river authority. Each entry is one departure.\n"], []
    for number in range(1, _ENTRIES["english"] + 1):
        barge, goods, keeper = (numbers.one_of(choices) for choices in (_BARGES, _GOODS, _KEEPERS))
        start, end = numbers.one_of(_PLACES), numbers.one_of(_PLACES)
        load = numbers.between(11, 96)
        lines.append(
            f"Entry {number}. The barge {barge} left {start} for {end} with {load} crates of {goods}; {keeper} was "
            "keeper."
        )
        seen.append((number, barge, load, goods, keeper, end))
        if number % _ASK_EVERY == 0:
            asked, boat, crates, load_of, who, bound = numbers.one_of(seen)
            lines.append(
                f"Question: what does entry {asked} say of the {boat}? Answer: it carried {crates} crates of {load_of} "
                f"to {bound}, and the keeper was {who}.\n"
            )
    return "\n".join(lines) + "\n"


def _chinese(numbers: Numbers) -> str:
    lines, seen = ["渡口登记簿，每条记录一次开船。\n"], []
    for number in range(1, _ENTRIES["chinese"] + 1):
        boat, goods, keeper = (numbers.one_of(choices) for choices in (_BOATS_ZH, _GOODS_ZH, _KEEPERS_ZH))
        start, end = numbers.one_of(_PLACES_ZH), numbers.one_of(_PLACES_ZH)
        load = numbers.between(11, 96)
        lines.append(f"第{number}条：{boat}号从{start}开往{end}，载{goods}{load}箱，值守{keeper}。")
        seen.append((number, boat, load, goods, keeper, end))
        if number % _ASK_EVERY == 0:
            asked, ship, boxes, load_of, who, bound = numbers.one_of(seen)
            lines.append(f"问：第{asked}条记的{ship}号运了什么？答：运{load_of}{boxes}箱到{bound}，值守是{who}。\n")
    return "\n".join(lines) + "\n"
