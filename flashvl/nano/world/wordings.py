"""The words of nano's questions and answers about its world, in English and Chinese: data alone.

In the wordings: {C} is colour or color, {P} picture, image, ...; {name} is what is asked for by
its name, a shape, the number or a noun from outside nano's world, {a_name} the same with its
article, {counted} in the plural ("stars") or, in Chinese, with its measure word ("个五角星");
{colour} is a colour, {a_colour} with its article; {thing} is what an object may be called, {item}
the same where "shape" would not do. Each ends with a mark, which a typist may leave out.
"""

SHAPES_ZH = {
    "circle": ("圆形", "圆", "圆圈"),
    "square": ("正方形", "方形", "方块"),
    "triangle": ("三角形",),
    "star": ("五角星", "星形", "星星"),
    "cross": ("十字形", "十字", "十字架"),
    "ring": ("圆环", "环形", "圆环形"),
}  # the first word is the one that answers use, the others occur in questions
COLOURS_ZH = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "orange": "橙色",
    "purple": "紫色",
    "black": "黑色",
    "white": "白色",
}

COLOUR_BY_NAME = {
    "en": (
        "What {C} is the {name}?",
        "What {C} is the {name}?",
        "Which {C} is the {name}?",
        "What is the {C} of the {name}?",
        "What's the {C} of the {name}?",
        "What {C} is the {name} in the {P}?",
        "What {C} does the {name} have?",
        "Tell me the {C} of the {name}.",
        "The {name} is what {C}?",
    ),
    "zh": (
        "{name}是什么颜色？",
        "{name}是什么颜色的？",
        "{name}的颜色是什么？",
        "{P}{name}是什么颜色？",
        "{P}的{name}是什么颜色的？",
        "{name}是哪种颜色？",
        "这个{name}是什么颜色？",
        "{name}什么颜色？",
    ),
}
COLOUR_OF_IT = {
    "en": (
        "What {C} is it?",
        "What {C} is the {thing}?",
        "What {C} is the {thing} in the {P}?",
        "What is the {C} of the {thing}?",
        "Which {C} is it?",
        "What {C} is this?",
    ),
    "zh": (
        "它是什么颜色？",
        "它是什么颜色的？",
        "{P}的{thing}是什么颜色？",
        "这个{thing}是什么颜色？",
        "这是什么颜色？",
        "{thing}是什么颜色的？",
        "它的颜色是什么？",
    ),
}
SHAPE_BY_COLOUR = {
    "en": (
        "What shape is the {colour} thing?",
        "What shape is the {colour} {item}?",
        "What shape is the {colour} one?",
        "What is the shape of the {colour} {item}?",
        "Which shape is {colour}?",
        "What shape is {colour}?",
        "What is the {colour} {item}?",
        "What {colour} shape is in the {P}?",
        "Tell me the shape of the {colour} {item}.",
    ),
    "zh": (
        "{colour}的是什么形状？",
        "{colour}的{item}是什么形状？",
        "{colour}{item}是什么形状？",
        "{colour}的{item}是什么形状的？",
        "{P}{colour}的{item}是什么形状？",
        "哪个形状是{colour}的？",
        "{colour}的东西是什么？",
        "什么形状是{colour}的？",
    ),
}
SHAPE_OF_IT = {
    "en": (
        "What shape is it?",
        "What shape is this?",
        "What shape is the {item}?",
        "What shape is in the {P}?",
        "Which shape is it?",
        "What is the shape of the {item}?",
        "What shape do you see?",
    ),
    "zh": (
        "它是什么形状？",
        "它是什么形状的？",
        "这是什么形状？",
        "{P}的{item}是什么形状？",
        "{P}是什么形状？",
        "这个{item}是什么形状？",
        "它的形状是什么？",
    ),
}
COUNT_ALL = {
    "en": (
        "How many {thing}s are there?",
        "How many {thing}s are there?",
        "How many {thing}s are there in the {P}?",
        "How many {thing}s are in the {P}?",
        "How many {thing}s do you see?",
        "How many {thing}s can you see?",
        "Count the {thing}s.",
        "How many {thing}s?",
    ),
    "zh": (
        "图中有几个{thing}？",
        "{P}有几个{thing}？",
        "{P}有多少个{thing}？",
        "{P}一共有几个{thing}？",
        "有几个{thing}？",
        "有多少个{thing}？",
        "你看到几个{thing}？",
        "数一数有几个{thing}？",
    ),
}
COUNT_BY_NAME = {
    "en": (
        "How many {counted} are there?",
        "How many {counted} are there in the {P}?",
        "How many {counted} are in the {P}?",
        "How many {counted} do you see?",
        "How many {counted} can you see?",
        "Count the {counted}.",
    ),
    "zh": (
        "{P}有几{counted}？",
        "{P}有多少{counted}？",
        "有几{counted}？",
        "有多少{counted}？",
        "你看到几{counted}？",
    ),
}
COUNT_BY_COLOUR = {
    "en": (
        "How many {colour} {thing}s are there?",
        "How many {colour} {thing}s are in the {P}?",
        "How many {colour} {thing}s do you see?",
        "How many {thing}s are {colour}?",
    ),
    "zh": (
        "{P}有几个{colour}的{thing}？",
        "有几个{colour}{thing}？",
        "有多少个{colour}的{thing}？",
        "几个{thing}是{colour}的？",
    ),
}
NUMBER = {
    "en": (
        "Read the number.",
        "Read the number in the {P}.",
        "Tell me the number.",
        "What number is this?",
        "What number is it?",
        "What number is in the {P}?",
        "Which number do you see?",
        "What number is written in the {P}?",
        "What does the number say?",
        "What is the number?",
        "What is the number in the {P}?",
        "What is written in the {P}?",
    ),
    "zh": (
        "{P}的数字是多少？",
        "{P}的数字是多少？",
        "{P}的数字是什么？",
        "{P}是什么数字？",
        "{P}写着什么数字？",
        "{P}有什么数字？",
        "读出数字。",
        "读一下数字。",
        "读出{P}的数字。",
        "数字是多少？",
        "数字是什么？",
        "这个数字是多少？",
        "这是什么数字？",
        "你看到什么数字？",
        "告诉我数字是多少。",
    ),
}
PRESENCE_BY_NAME = {
    "en": (
        "Is there {a_name}?",
        "Is there {a_name}?",
        "Is there {a_name} in the {P}?",
        "Are there any {counted}?",
        "Do you see {a_name}?",
        "Can you see {a_name}?",
        "Can you see {a_name} in the {P}?",
        "Does the {P} show {a_name}?",
    ),
    "zh": (
        "有{name}吗？",
        "{P}有{name}吗？",
        "{P}有没有{name}？",
        "有没有{name}？",
        "这里有{name}吗？",
    ),
}
PRESENCE_BY_COLOUR = {
    "en": (
        "Is there {a_colour} {thing}?",
        "Is there {a_colour} {thing} in the {P}?",
        "Is there anything {colour}?",
        "Is there something {colour} in the {P}?",
        "Is anything {colour}?",
        "Are there any {colour} {thing}s?",
        "Do you see {a_colour} {thing}?",
        "Can you see something {colour}?",
        "Can you see {a_colour} {thing} in the {P}?",
    ),
    "zh": (
        "有{colour}的{thing}吗？",
        "{P}有{colour}的{thing}吗？",
        "{P}有没有{colour}的{thing}？",
        "有没有{colour}的{thing}？",
        "这里有{colour}的{thing}吗？",
        "有{colour}的吗？",
    ),
}
DESCRIPTION = {
    "en": (
        "What is in the {P}?",
        "What is in the {P}?",
        "What's in the {P}?",
        "What is in this {P}?",
        "What do you see?",
        "What do you see in the {P}?",
        "What can you see?",
        "What can you see in the {P}?",
        "Describe the {P}.",
        "Describe this {P}.",
        "What does the {P} show?",
        "What is there?",
        "What is this?",
    ),
    "zh": (
        "图中有什么？",
        "{P}有什么？",
        "{P}是什么？",
        "你看到了什么？",
        "你看到什么？",
        "描述一下这张图。",
        "描述这张图片。",
        "请描述图片。",
        "这张图片里有什么？",
        "这是什么？",
    ),
}
LIST = {
    "en": (
        "List the shapes and their {C}s.",
        "List the shapes with their {C}s.",
        "List each shape and its {C}.",
        "Name each shape and its {C}.",
        "Give the {C} of each shape.",
    ),
    "zh": (
        "列出每个形状和它的颜色。",
        "列出形状和颜色。",
        "说出每个形状和颜色。",
        "每个形状是什么颜色？",
        "{P}每个形状各是什么颜色？",
    ),
}
PICTURE = {
    "en": ("picture", "picture", "image", "photo"),
    "zh": ("图中", "图里", "图片中", "图片里", "画面中", "图像中"),
}
THING = {"en": ("thing", "object", "shape"), "zh": ("物体", "东西", "图形", "形状")}
ITEM = {"en": ("thing", "object"), "zh": ("物体", "东西", "图形")}
THING_BESIDE_NUMBER = {"en": ("shape",), "zh": ("图形", "形状")}  # what a number is not

NUMBER_NAMES = {"en": ("number", "numbers"), "zh": ("数字", "个数字")}  # {name}, {counted}
YES = {"en": "Yes.", "zh": "有。"}
NO = {"en": "No.", "zh": "没有。"}
NO_SHAPE = {"en": "There is no {shape}.", "zh": "没有{shape}。"}
NO_COLOUR = {"en": "There is no {colour} thing.", "zh": "没有{colour}的东西。"}
NO_NUMBER = {"en": "There is no number.", "zh": "没有数字。"}
