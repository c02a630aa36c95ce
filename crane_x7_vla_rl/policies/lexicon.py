"""The words that the parser of instructions knows, in English and Japanese. Patterns, no logic.

All are for text in lower case, of normal width; see `words`. They are general vocabulary and were
not fitted to the wordings of `reserved`.
"""

from __future__ import annotations

import re
from typing import Final

COLOURS: Final = {
    "red": r"\b(red(dish)?|crimson|scarlet|ruby|cherry|carmine|vermilion)\b"
    r"|赤|紅|あか[いの]|レッド|クリムゾン|スカーレット|ルビー",
    "green": r"\b(green(ish)?|emerald|lime|jade)\b|緑|翠|みどり|グリーン|エメラルド|ライム色",
    "blue": r"\b(blue|bluish|navy|azure|sapphire|cobalt|ultramarine)\b"
    r"|青|蒼|紺|藍|群青|瑠璃|あお[いの]|ブルー|ネイビー|サファイア|コバルト",
    "yellow": r"\byellow(ish)?\b|黄|きいろ|イエロー",
    "orange": r"\borange\b|橙|オレンジ|だいだい",
    "purple": r"\b(purple|violet|lilac|mauve|lavender|indigo)\b|紫|むらさき|パープル|バイオレット",
    "pink": r"\b(pink|rose|salmon)\b|桃色|ピンク",
    "magenta": r"\b(magenta|fuchsia)\b|マゼンタ",
    "brown": r"\b(brown|beige|tan|maroon)\b|茶|ベージュ|ブラウン",
    "black": r"\b(black|ebony)\b|黒|くろ[いの]|ブラック",
    "white": r"\b(white|ivory)\b|白|しろ[いの]|ホワイト",
    "grey": r"\b(gr[ae]y|silver(y)?)\b|灰色|鼠色|銀|グレー|シルバー",
    "gold": r"\b(gold(en)?)\b|金色|ゴールド",
    "turquoise": r"\b(turquoise|cyan|teal|aqua(marine)?)\b"
    r"|水色|空色|みずいろ|シアン|ターコイズ|青緑",
    "yellow-green": r"黄緑|きみどり",
    "red-purple": r"赤紫",
    "blue-purple": r"青紫",
}
"""Colour → its words. Only some of them are cubes of a policy; the others must not become one."""
COLOUR: Final = re.compile(
    "|".join(
        f"(?P<{name.replace('-', '_')}>{words})"
        # The longer words first: 青緑 is neither 青 nor 緑.
        for name, words in reversed(COLOURS.items())
    )
)

CUBE: Final = r"(cubes?|blocks?|brick|box|die|dice|square|one|thing|object|item|piece|toy|target)"
ADJECTIVE: Final = (
    r"(colou?red|small|little|tiny|big|large|wooden|plastic|building|toy|shiny|square|lego"
    r"|left|right|first|second|same)"
)
AFTER_NOUN: Final = (
    r"(up|down|off|from|on|onto|in|into|inside|to|and|or|but|then|with|that|which|who|please|pls|now"
    r"|at|over|out|for|of|is|as|than|next|near|beside|besides|by|behind|under|between|close|lying"
    r"|sitting|standing|away|carefully|gently|slowly|quickly|again|first|thanks|thank|will|should"
    r"|would|must|has|have|so|when|while|before|after|if|it|there|here|immediately)"
)
"""Words that may follow a colour without a noun: "pick the red up"."""
OBJECT: Final = re.compile(rf"[\s-]*({ADJECTIVE}\b[\s,-]*)*({CUBE}\b|{AFTER_NOUN}\b|[^\w\s'-]|$)")
"""What must follow the colour of a cube in English."""
RELATIVE: Final = re.compile(r"\b(\w+) (?:that|which)(?:'s| is| are| has| looks)\b")
THINGS: Final = re.compile(rf"{CUBE}|plate|dish|saucer|table|robot|arm|gripper|hand|colour|color")
CUBE_JA: Final = re.compile(
    r"(\s|い|な|の|色|いろ|っぽい|カラー|をした|小さい|小さな|大きい|大きな|四角い|木の)*"
    r"(キューブ|ブロック|積み?木|つみき|立方体|正方形|四角形?|サイコロ|さいころ|ダイス|箱|はこ|ボックス"
    r"|レンガ|れんが|煉瓦|物体?|もの|モノ|やつ|奴|ヤツ|ほう|方|[をはがも、。]|だけ|$"
    r"|持|取|とっ|掴|つか|拾|上げ|置|のせ|載|乗|皿|お皿|プレート)"
)
"""What must follow the colour of a cube in Japanese."""

LIFT: Final = re.compile(
    r"\b(pick(s|ing)?|lift(s|ing)?|grasp(ing)?|grab(bing)?|rais(e|ing)|tak(e|ing)|hold|fetch|get"
    r"|getting|hoist|elevate|collect|snatch|seize|grip|clutch|scoop)\b"
    r"|持ち|持って|持つ|持て|もって|もち上|もちあ|取|とって|掴|つか|つまみ|つまん|摘ま|摘み|拾|ひろ[いっう]"
    r"|上げ|あげ|握|把持|ピックアップ"
)
PLACE: Final = re.compile(
    r"\b(plac(e|ing)|put(ting)?|set(ting)?|drop(ping)?|lay(ing)?|mov(e|ing)|bring(ing)?"
    r"|carry(ing)?|transfer(ring)?|deposit(ing)?|deliver|stick|belongs?)\b"
    r"|置|おい[てた]|のせ|載せ|乗せ|運|はこ[んび]|下ろ|降ろ|おろ[しせ]|移し|移動|うつし|配置|持っていっ|持って行っ"
)
TO: Final = re.compile(r"\b(onto|(?<!next )(?<!close )to)\b")
"""With a place, "lift", too, means to place."""
ON_PLATE: Final = re.compile(
    r"\b(on|on top of|onto|upon|in|into|(?<!next )(?<!close )to) (the |a |that |its )?(\w+ )?"
    r"(plate|dish|saucer)\b"
    r"|(皿|プレート)(の上|のうえ|上)?[にへ](?!ある|ない)"
)
ALREADY: Final = re.compile(
    r"に?(置いて|おいて|置かれて|乗って|のって|載って)(ある|いる|た)(?=[^。])"
    r"|\b(lying|sitting|standing|placed|that is|that lies|which is|which lies) on (the |a )?"
    r"(\w+ )?(plate|dish|saucer)\b"
)
"""Where a cube is, not where to put it."""
OTHER_ACTION: Final = re.compile(
    r"\b(throw|toss|fling|push|shove|pull|slide|drag|roll|rotate|turn|twist|spin|flip|tip|stack"
    r"|paint|cut|break|smash|crush|squeeze|shake|press|hit|kick|poke|tap|wipe"
    r"|pour|hide|swap|exchange|sort|count|measure|eat|burn|wash|clean|get rid"
    r"|(give|hand|pass|show) (me|him|her|us|them|it|the))(ing)?\b(?! of\b)"
    r"|積んで|積み(?!木)|積む|重ね|投げ|押し|押す|押せ|引い|引っ|滑ら|転が|回し|回転|ひっくり|倒し|倒せ|切っ|切る"
    r"|塗っ|塗る|振っ|振る|叩|壊|潰|拭|洗|隠|交換|並べ|渡し|渡せ"
)
SEVERAL: Final = re.compile(
    r"\b(all|both|every|each|everything)\b(?! (fingers|sides|the way))"
    r"|\b(pick up|lift|grasp|grab|take|get|put|place|move|bring) (the )?(two|three)\b"
    r"|全部|すべて|全て|両方|ぜんぶ|みんな"
)
QUESTION: Final = re.compile(
    r"^(what|where|which|who|whose|when|how|is|are|was|were|did|does|has|have)\b"
    r"|どこ|何色|なに|何個|いくつ|どれ|どちら|どっち"
)

POLITE: Final = re.compile(
    r"\b(why don't|why not|why do not|won't|wouldn't|can't|couldn't) (you|we)\b"
    r"|(くれ|もらえ|もらい|いただけ|頂け|くださ(ら|い)|下さ(ら|い))(ない|ません)"
    r"(?=(です)?(か|かな|でしょうか|だろうか)?\s*([?。、!]|$))"
    r"|すみません|済みません|かまいません|構いません|申し訳(ない|ありません)"
)
"""A negation that forbids nothing."""
CONTRAST: Final = re.compile(
    r"(^|[,;.]|\b(and|but)\b)\s*not (the |a |an )?(\w+ )?"
    rf"{CUBE}\b"
    r"|[^、。]*(では|じゃ)なくて?、?"
)
""""Not the blue one": it names what to leave, and forbids nothing else."""
FORBID: Final = re.compile(
    r"n't\b|\b(dont|do nt|not|never|stop|halt|freeze|wait|cannot|avoid|refrain|no|leave|nobody"
    r"|nothing|neither|except|excluding|ignore|skip|forbid|forbidden|refuse|quit|resist|dangerous"
    r"|broken)\b|\b(any(thing| \w+)?|every(thing| \w+)?|all) but\b"
    r"|\b(hands|stay|keep) (off|away|clear|your hands)\b"
    r"|ない|ません|やめ|辞め|止め|止ま|だめ|ダメ|駄目|禁止|待っ|待て|ストップ|中止|そのまま"
    r"|以外|無視|避け|よけて|危険|危ない|んといて"
    r"|[うくぐすつぬぶむる]な(?![らのんど])"
)
WITHOUT: Final = re.compile(r"\bwithout\b[^,.;!?]*")
BESIDE: Final = re.compile(
    r"\b(next to|besides?|near|by|behind|under|below|above|between|left of|right of|in front of"
    r"|close to|instead of|rather than)\b"
)
"""The words after it name a place: their colour is not that of the cube to move."""
CLAUSE_END: Final = re.compile(r"[.;!?]")
ON_THING: Final = re.compile(
    r"\b(on|on top of|onto|atop|over|from|into|than|off)( the| a)?( (bright|dark|light))?\s*$"
)
"""Directly before a colour: that of a place."""
PLACE_NOUN: Final = re.compile(
    r"[\s-]*(い|の|色の)?(plate|dish|saucer|table|tray|mat|background|皿|お皿|プレート|机|テーブル)"
)
"""Directly after a colour: not a cube's."""
AND_ANOTHER: Final = re.compile(
    rf"^\s*({ADJECTIVE}\b\s*)*({CUBE}\b)?\s*(,|and|or|then|as well as|plus|&|/|-|\s)+"
    r"(the |a |an )?\s*(other )?$"
    r"|^.*(と|や|か|および|及び|又は|または)、?$"
)
"""Between two colours: two cubes are named."""

THE_CUBE: Final = re.compile(
    r"\b(it|the (cube|block|object))\b|(^|[、。\s])(それ|キューブ|ブロック|物体)"
)
"""Words for the cube of the task before. "The purple cube" is not among them: it must not become a
cube that the arm knows."""
