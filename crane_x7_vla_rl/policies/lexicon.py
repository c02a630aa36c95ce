"""The words that the parser of instructions knows, in English and Japanese. Patterns, no logic.

All are for text in lower case, of normal width; see `words`. They are general vocabulary and were
not fitted to the wordings of strangers in `reserved`.
"""

from __future__ import annotations

import re
from typing import Final

CUBE: Final = (
    r"(cubes?|cuboid|blocks?|bricks?|box|die|dice|square|one|thing|object|item|piece|part|toy"
    r"|target|colou?r)"
)
ADJECTIVE: Final = (
    r"(colou?r(ed)?|small|little|tiny|big|large|wooden|plastic|building|toy|shiny|square|cubic|lego"
    r"|left|right|first|second|same)"
)
AS_COLOUR: Final = rf"(?=[\s-]+({ADJECTIVE}|{CUBE}|red|green|blue)\b)"
"""After the name of a thing which also names a colour: "the lime" is a fruit."""
AS_COLOUR_JA: Final = "(?=色|カラー|の|レッド|グリーン|ブルー)"
COLOURS: Final = {
    "red": r"\b(red(dish)?|crimson|scarlet|carmine|vermilion|burgundy"
    rf"|(ruby|cherry|garnet|tomato|strawberry){AS_COLOUR})\b"
    rf"|赤|紅|朱|緋|あか[いの]|レッド|クリムゾン|スカーレット|ルビー{AS_COLOUR_JA}",
    "green": rf"\b(green(ish)?|(emerald|lime|jade|olive){AS_COLOUR})\b"
    rf"|緑|翠|みどり|グリーン|エメラルド{AS_COLOUR_JA}|ライム色",
    "blue": rf"\b(blue|bluish|navy|azure|cobalt|ultramarine|cerulean|sapphire{AS_COLOUR})\b"
    rf"|青|蒼|紺|藍|群青|瑠璃|あお[いの]|ブルー|ネイビー|サファイア{AS_COLOUR_JA}|コバルト",
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
CUBE_WORD: Final = re.compile(
    rf"\b({CUBE}|it|them|hand|arm|gripper|fingers|claw|look|moment|second|time|care)\b"
)
OBJECT_OF: Final = re.compile(
    r"\b(pick|lift|grasp|grab|raise|take|fetch|get|place|put|set|move|bring|carry)( up| hold of)?"
    r" (the|that|this|an?|my|some) (?!(up|down|there|here)\b)(?P<object>[\w'-]+( [\w'-]+){0,4}?)"
    rf"(?= {AFTER_NOUN}\b|[^\w\s'-]|\s*$)"
)
"""The object of an action, up to the next preposition."""
THINGS: Final = re.compile(rf"{CUBE}|plate|dish|saucer|table|robot|arm|gripper|hand")
CUBE_NOUN_JA: Final = (
    r"キュ[ーウ]?ブ|きゅーぶ|ブロッ?ク|ぶろっく|積み?木|つみき|立方体|正方形|四角形?|サイコロ|さいころ|ダイス|箱|はこ|ボックス"
    r"|レンガ|れんが|煉瓦|物体?|もの|モノ|やつ|奴|ヤツ"
)
CUBE_JA: Final = re.compile(
    r"(\s|い|な|の|色|いろ|っぽい|カラー|をした|小さい|小さな|大きい|大きな|四角い|しかくい|木の)*"
    rf"({CUBE_NOUN_JA}|ほう|方|[をはがも、。]|だけ|$"
    r"|持|取|とっ|掴|つか|拾|上げ|置|のせ|載|乗|皿|お皿|プレート)"
)
"""What must follow the colour of a cube in Japanese."""

LIFT: Final = re.compile(
    r"\b(pick(up|s|ing)?|(up)?lift(s|ing)?|grasp(ing)?|grab(bing)?|rais(e|ing)|tak(e|ing)|hold|fetch"
    r"|get|getting|hoist|elevate|collect|snatch|seize|grip|clutch|scoop|retriev(e|ing)|acquire|obtain"
    r"|secure|pluck|pinch|gather|capture|catch|clasp)\b"
    r"|持ち|持って|持つ|持て|もって|もち上|もちあ|取|とって|掴|つか|つまみ|つまん|摘ま|摘み|拾|ひろ[いっう]"
    r"|上げ|あげ|握|挟|はさ[みん]|把持|(ピック(アップ)?|リフト(アップ)?|キャッチ)(し|する|を|の|動作|操作|作業|$)"
)
PLACE: Final = re.compile(
    r"\b(plac(e|ing)|put(ting)?|set(ting)?|drop(ping)?|lay(ing)?|mov(e|ing)|bring(ing)?"
    r"|carry(ing)?|transfer(ring)?|deposit(ing)?|deliver(ing)?|stick(ing)?|belongs?|serv(e|ing)"
    r"|rest(ing)?|position(ing)?|relocat(e|ing)|shift(ing)?|pop(ping)?|plop|plonk|chuck|park(ing)?"
    r"|dump(ing)?|convey|haul|return(ing)?|releas(e|ing)|load(ing)?|arrang(e|ing))\b"
    r"|置|おい[てた]|のせ|のっけ|[乗載]っ?[せけ]|(ある|いる)(よう|状態)に|盛り?[っつ付]|運|はこ[んび]"
    r"|下ろ|降ろ|おろ[しせ]|移し|移動|うつし|配置|持っていっ|持って行っ"
)
WISH: Final = (
    r"want|need|like|love|prefer|wish|hope|great|nice|good|happy|glad|grateful|thankful|appreciate"
    r"|make sure|ensure|see to it|see that|(your|the|next) (job|task|goal|mission)"
)
LIFTED: Final = (
    r"(picked|lifted|grasped|grabbed|raised|taken|collected|held|up in the air|off the table"
    r"|in (your|the) (gripper|hand|fingers|claw))"
)
PLACED: Final = r"(placed|put|set|dropped|laid|moved|brought|carried|transferred|delivered)"
WISHED: Final = re.compile(
    rf"\b({WISH}|(get|have) (?=(the|that)\b)(?!.*\bbeen\b)"
    r"|(should|must|needs? to|has to|ought to|to|can|could|may|would) be)\b"
    rf".*?\b((?P<lifted>{LIFTED})|(?P<placed>{PLACED}))\b"
)
"""A participle that orders: "I want the red cube lifted". "I lifted the red cube" does not."""
WISHED_THERE: Final = re.compile(
    rf"\b({WISH})\b|\b(goes|(should|must|needs? to|has to|ought to|to) (be|go|sit|end up|land))\b"
    r"|お願い|おねがい|よろしく"
)
"""With "on the plate" enough of a verb: "I'd like the red cube on the plate"."""
PLATE: Final = r"(plate|dish|saucer)"
PLATE_GETS: Final = re.compile(
    rf"\b{PLATE} (should|must|needs?|wants?|has to|ought to|is to)"
    r"( to)? (get|have|hold|receive|carry|be)\b"
)
"""The plate as the subject of "place": it should get the cube."""
TO: Final = re.compile(r"\b(onto|(?<!next )(?<!close )to)\b")
"""With a place, "lift", too, means to place."""
ELSEWHERE: Final = re.compile(
    r"\b(onto|into|(?<!next )(?<!close )to) (the|a|an|my|your|his|her|its|that|this|our) "
    r"(?!(air|sky|ceiling|top|height|maximum|max)\b)(?=\w)"
)
"""With a verb that lifts, a place that is not the plate."""
MIDDLE: Final = r"(middle|cent(er|re)|surface|top)"
PLATE_NOUN_JA: Final = r"(皿|おさら|プレート)"
PLATE_JA: Final = (
    rf"{PLATE_NOUN_JA}(の?(上|うえ|真ん中|まんなか|中央|中心|中|ほう|方))?"
    r"((に|へ|まで)(?!ある(?!よう|状態)|ない)|[\sね、。!]*(?=置|のせ|のっけ|[乗載]っ?[せけ]))"
)
ARROW: Final = (
    r"(→|->|=>|(target|destination|goal|location)\W+(is )?)\s*(the )?(white )?"
    rf"({PLATE}\b|{PLATE_NOUN_JA})"
)
ON_PLATE: Final = re.compile(
    r"\b(on|on top of|onto|upon|in|into|at|(?<!next )(?<!close )to)"
    rf" (?:(the |that )?{MIDDLE} of )?(the |a |that |its |my |your )?(\w+ )?{PLATE}\b"
    rf"|\b{PLATE}\b (?=(is|'s) where\b)|{PLATE_JA}|{ARROW}"
)
THERE: Final = re.compile(
    rf"(?<!off the )(?<!from the )\b{PLATE}\b.{{0,80}}\b(put|place|set|move|drop|lay|bring|take) "
    r".{0,60}\b(there|on(to)? it|on(?=\W*$|,))\b"
    rf"|{PLATE_NOUN_JA}(?!の?(横|隣|となり|そば|脇|わき|下|近|前|後|裏)).{{0,40}}(そこ|その上|そちら)[にへ]"
)
"""The plate is named, then a place that is the plate."""
TERSE: Final = re.compile(
    r"(.*[:,.;] )?\W*((please|now|just|only|ok|okay|next|then|so|and|the|that)\b\W*)*"
    rf"(\w+([ -]\w+)? {CUBE} (on|onto|to|in|into)( the)?( \w+)? {PLATE}"
    rf"|(on|onto|to) the( \w+)? {PLATE} with the \w+ {CUBE})"
    r"\W*((please|now|thanks|thank you)\b\W*)*"
    rf"|.*(→|->|=>)\s*(the )?({PLATE}|{PLATE_NOUN_JA}(の?上)?)\W*"
    rf"|.*{PLATE_NOUN_JA}(の?上)?(に|へ|まで)\W*"
)
"""The whole text, without any verb: "red cube on the plate"."""
GET_ONTO: Final = re.compile(
    rf"\b(get|getting|want|need|like|leave|have) (it|the|that)\b[^,.;!?]*?(?<!is )(?<!lies )"
    rf"\b(on|onto) (the |a |that )?(\w+ )?{PLATE}\b"
)
"""With nothing but "get" for an action, it names what shall be: "get the red cube on the plate"."""
APPROACH: Final = re.compile(
    r"\b(move|go|drive|head|come|reach|bring|lower|position|get|take|steer|guide)"
    r"( (your|the) (arm|hand|gripper|fingers|claw|end effector))?"
    r"( (over|down|across|out|right|up|yourself))*( to| towards?| above| over| at| near| for)"
    r"(?= (the|that|a) [^,.;!?]*(,| and| then)\b)"
)
"""How the hand gets there, before the action that a clause names after it."""
GRIP: Final = re.compile(
    r"\b(close|clamp|wrap|shut) (your|the) (gripper|fingers|hand|claw|jaws) (on|around|over|onto)\b"
    r"|\b(get|take|have) (a |an )?(\w+ )?(grip|hold) (on|of)\b|\b(grasp|grab|grip|lift|pick) on\b"
)
"""Longer words for a grip; "on" names no place in them."""
ALREADY: Final = re.compile(
    r"に?(置いて|おいて|置かれて|乗って|のって|載って)(ある|いる|た)(?!よう|状態)(?=[^。])"
    rf"|\b(lying|sitting|standing|placed|that is|that lies|which is|which lies) on (the |a )?"
    rf"(\w+ )?{PLATE}\b"
)
"""Where a cube is, not where to put it."""
OTHER_ACTION: Final = re.compile(
    r"\b(throw|toss|fling|push|shove|pull|slide|drag|roll|rotate|turn|twist|spin|flip|tip|stack"
    r"|paint|cut|break|smash|crush|squeeze|shake|press|hit|kick|poke|tap|wipe"
    r"|pour|hide|swap|exchange|sort|count|measure|eat|burn|wash|clean|get rid"
    r"|(give|hand|pass|show) (me|him|her|us|them|it|the))(ing)?\b(?! of\b)"
    r"|\b(tak(e|ing)|get|getting|remov(e|ing)|clear)\b[^.;!?]*\b(off|out of) (of )?"
    rf"(the |that )?(\w+ )?{PLATE}\b"
    r"|積んで|積み(?!木)|積む|重ね|投げ|押し|押す|押せ|引い|引っ|滑ら|転が|回し|回転|ひっくり|倒し|倒せ|切っ|切る"
    r"|塗っ|塗る|振っ|振る|叩|壊|潰|拭|洗|隠|交換|並べ|渡し|渡せ"
)
SEVERAL: Final = re.compile(
    r"\b(all|both|every|each|everything)\b(?! (fingers|sides|the way))"
    r"|\b(pick up|lift|grasp|grab|take|get|put|place|move|bring) (the )?(two|three)\b"
    r"|全部|すべて|全て|両方|ぜんぶ|みんな"
)
QUESTION: Final = re.compile(
    r"^(what(?! (i|we|needs?)\b[^?]*\bis\b)|where|which|who|whose|when|how|is|are|was|were"
    r"|did|does|has|have(?! (the|that)\b(?!.*(\bbeen\b|\?))))\b"
    r"|なんで|なぜ|どうして|どこ|なに|何|誰|だれ|ましたか|いくつ|どれ|どちら|どっち"
)

POLITE: Final = re.compile(
    r"\b(why don't|why not|why do not|won't|wouldn't|can't|couldn't) (you|we)\b"
    r"|^(how|what) about\b"
    r"|\bwhen(ever)? (you are|you're|you have|you've|you get|you can|it is|it's)"
    r"( all| a| the| some)?"
    r" (ready|done|finished|free|able|possible|moment|minute|second|time|chance)\b"
    r"|\bif you (can|could|may|would|will|please|like|want to)\b|\bif possible\b"
    r"|\bif you('d| would| will)? (be|were) (so |very )?(kind|good)( enough)?\b"
    r"|(よ|良|よろし)ければ|(よ|良)かったら|でき(れば|たら)|可能なら"
    r"|(もらえ|いただけ|頂け|くれ|くださっ)(たら|れば)"
    r"|\bno (rush|hurry|problem)\b|\bnothing (else|more)\b|\b(and |then )+stop\W*$"
    r"|^(do )?you (know|see) (?=(the|that) [^,.?]*\?)"
    r"|\bif (it|that)('s| is)( not| no)?( too much| any| a)?"
    r" (bother|trouble|problem|ok|okay|possible|alright|all right)\b"
    r"|\bif you (don't|wouldn't) mind\b"
    r"|(くれ|もらえ|もらい|いただけ|頂け|くださ(ら|い)|下さ(ら|い)|くん)(ない|ません|ねえ|へん)"
    r"(?=(です)?(か|かな|でしょうか|だろうか)?\s*([?。、!]|$))"
    r"|すみません|済みません|かまいません|構いません|申し訳(ない|ありません)"
)
"""A negation or condition that forbids nothing and waits for nothing."""
SUPPOSED: Final = re.compile(
    r"\b(grateful|great|nice|good|happy|glad|lovely|wonder|wondering|appreciate it"
    r"|help|help me|help me a lot|help a lot) if\b"
)
"""The "if" of a wish."""
CONTRAST: Final = re.compile(
    rf"(^|[,;.]|\b(and|but)\b)\s*not ((the |a |an )?(\w+ )?{CUBE}\b|the \w+(?=\s*([,;:.!-]|$)))"
    r"|\b(do not|don't|dont) (touch|move|disturb|knock over) (the |any )?(rest|others?|other \w+)"
    r"|\bleave (the )?(rest|others|other \w+)( alone| there| be| where they are)?\b"
    r"|[^、。]*(では|じゃ|でも)なくて?、?"
    r"|(ほか|他|残り)(の[^、。をは]*)?には?(そのまま|触らず|触らない|いじらず)(で|に)?、?"
    r"|(ほか|他|残り)(の[^、。をは]*)?は(そのまま|触らず|触らない|いじらず)(で|に)?、?"
)
""""Not the blue one": it names what to leave, and forbids nothing else."""
FORBID: Final = re.compile(
    r"n't\b|\b(?<!\band )leave\b|\bleave\b(?! it\b)"
    r"|\b(dont|do nt|not|never|stop|halt|freeze|wait|cannot|avoid|refrain|no|nobody"
    r"|nothing|neither|except|excluding|ignore|skip|forbid|forbidden|refuse|quit|resist|dangerous"
    r"|broken|forget|cancel|abort|undo|scrap|changed my mind)\b"
    r"|\b(any(thing| \w+)?|every(thing| \w+)?|all) but\b"
    r"|\b(?<!my )(?<!our )(hands|stay|keep|kept|keeping) (off|away|clear|your hands)\b"
    r"|ない|なくて|ません|やめ|辞め|止め|止ま|だめ|ダメ|駄目|禁止|待っ|待て|ストップ|中止|そのまま"
    r"|以外|無視|避け|よけて|危険|危ない|んといて|キャンセル|取り消|中断|忘れて"
    r"|[うくぐすつぬぶむる]な(?![らのんど])"
)
CONDITION: Final = re.compile(
    r"\b(if|unless|until|(?<!at )once|when|whenever|while|before"
    r"|after (?!that\b|\w+ing (the|your) (gripper|fingers|hand)\b))\b"
    r"|たら|だら|れば|けば|せば|えば|とき|時に|時は|[うくぐすつぬぶむるた]前に|[うくぐすつぬぶむる]まで"
)
"""An action that waits for something."""
QUOTED: Final = re.compile(r"[「『“”\"]|(?<!\w)'.*'(?!\w)")
"""Words that somebody else says, or that stand somewhere."""
GERUND_IS: Final = re.compile(
    r"\W*(picking|lifting|grabbing|grasping|taking|raising|putting|placing|moving|setting)\b.*"
    r"\b(is|was|requires|needs|takes|would|will|has|seems|makes|means|looks)\b"
)
"""A sentence about an action, which orders none."""
PEOPLE: Final = r"\b(i|he|she|we|they|someone|somebody|who)"
STATEMENT: Final = re.compile(
    rf"(?<!can )(?<!could )(?<!may )(?<!shall )(?<!should )(?<!if )(?<!so ){PEOPLE}"
    r"('ll|'m|'re|'s|'ve| (will|can|could|am|are|is|was|were|have|has|had|just|already))* "
    r"(?P<verb>\w+)\b"
    r"|([いきぎしちみびりけげせてねべめれ]まし|[いしせけげてれ]|っ)た(よ|ね|よね|ぞ|わ|の|のよ|です)?\s*[。.!?]*$"
    r"|(つか|掴|運|はこ)んだ(よ|ね)?\s*[。.!]*$"
    r"|[てで](あります|ある|います|いる)(よ|ね)?\s*[。.!]*$|ところ(です|だ)|(くれて|くださって|下さって)(ありがと|有難)"
)
"""What somebody else does, or what was done; `verb` must be one of the actions."""
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
THEN_ANOTHER: Final = re.compile(
    r"\b(and|then|after|afterwards|later|also|plus|followed by)\b( (the|a|an|another))?\s*$"
    r"|\b(i mean|i meant|sorry|oops|actually|rather|make that|correction|half)\b"
    r"|間違|訂正|やっぱ|いや|違う|違っ"
    r"|\b(and|then|after|afterwards)\b.*\b(pick|lift|grasp|grab|raise|take|place|put|set|move)\b"
)
"""Between two colours: the second cube shall move, too, or instead."""
TOO_JA: Final = re.compile(r"[^、。をもはが]*?(?<!で)[をも](?![のっち])")
"""After the colour of a second cube that shall move, too."""
OTHER_OBJECT_JA: Final = re.compile(rf"({PLATE_NOUN_JA}|机|テーブル)を(?!使)")
"""The object of an action in Japanese that is no cube."""
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
