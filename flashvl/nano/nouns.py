"""What nano is asked for and does not know, by its name or its colour: data alone."""

_REGULAR = """
dog cat car tree house face banana bird flower apple table chair window door cup book
phone computer plane boat train bicycle mountain river cloud hand eye nose hat shoe shirt
bottle lamp clock key pen horse cow elephant lion tiger bear rabbit duck egg cake pizza
umbrella bridge road garden ship robot doctor girl boy king ghost dragon letter hexagon pentagon
heart arrow oval cube pyramid spiral
"""
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "baby": "babies",
    "bus": "buses",
    "fish": "fish",
    "mouse": "mice",
    "tooth": "teeth",
    "tomato": "tomatoes",
}
_MEASURES = {
    "个": """
        人 男人 女人 孩子 女孩 男孩 医生 机器人 杯子 瓶子 苹果 鸡蛋 蛋糕 西瓜 字母 六边形 五边形
        爱心 箭头 椭圆 菱形
    """,
    "只": "狗 猫 鸟 兔子 鸭子 老虎 狮子 熊 老鼠 手 眼睛 鞋子",
    "辆": "汽车 自行车 公交车 卡车",
    "棵": "树",
    "朵": "花 云",
    "张": "脸 桌子 床",
    "把": "椅子 伞 钥匙",
    "座": "房子 山 桥",
    "条": "鱼 河 路 龙 蛇",
    "根": "香蕉",
    "头": "牛 大象",
    "匹": "马",
    "架": "飞机",
    "艘": "船",
    "本": "书",
    "部": "手机",
    "台": "电脑",
    "扇": "门 窗户",
    "顶": "帽子",
    "件": "衣服",
    "支": "笔",
    "盏": "灯",
}
NOUNS = {  # {name} -> {counted}
    "en": {noun: noun + "s" for noun in _REGULAR.split()} | _IRREGULAR,
    "zh": {noun: measure + noun for measure, nouns in _MEASURES.items() for noun in nouns.split()},
}
OUTSIDE_COLOURS = {
    "en": ("brown", "pink", "grey", "gray", "cyan", "beige", "turquoise", "silver", "teal"),
    "zh": ("棕色", "粉色", "灰色", "青色", "米色", "银色", "褐色", "咖啡色"),
}
