"""The words of nano's questions and answers, in English and Chinese: data alone."""

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

# In the wordings: {C} colour or color, {P} picture, image, ...; {shape}, {colour}, {thing}.
COLOUR_OF_SHAPE = {
    "en": (
        "What {C} is the {shape}?",
        "What {C} is the {shape}?",
        "Which {C} is the {shape}?",
        "What is the {C} of the {shape}?",
        "What's the {C} of the {shape}?",
        "What {C} is the {shape} in the {P}?",
        "What {C} does the {shape} have?",
        "Tell me the {C} of the {shape}.",
        "The {shape} is what {C}?",
    ),
    "zh": (
        "{shape}是什么颜色？",
        "{shape}是什么颜色的？",
        "{shape}的颜色是什么？",
        "{P}{shape}是什么颜色？",
        "{P}的{shape}是什么颜色的？",
        "{shape}是哪种颜色？",
        "这个{shape}是什么颜色？",
        "{shape}什么颜色？",
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
SHAPE_OF_COLOUR = {
    "en": (
        "What shape is the {colour} thing?",
        "What shape is the {colour} {thing}?",
        "What shape is the {colour} one?",
        "What is the shape of the {colour} {thing}?",
        "Which shape is {colour}?",
        "What shape is {colour}?",
        "What is the {colour} {thing}?",
        "What {colour} shape is in the {P}?",
        "Tell me the shape of the {colour} {thing}.",
    ),
    "zh": (
        "{colour}的是什么形状？",
        "{colour}的{thing}是什么形状？",
        "{colour}{thing}是什么形状？",
        "{colour}的{thing}是什么形状的？",
        "{P}{colour}的{thing}是什么形状？",
        "哪个形状是{colour}的？",
        "{colour}的东西是什么？",
        "什么形状是{colour}的？",
    ),
}
SHAPE_OF_IT = {
    "en": (
        "What shape is it?",
        "What shape is this?",
        "What shape is the {thing}?",
        "What shape is in the {P}?",
        "Which shape is it?",
        "What is the shape of the {thing}?",
        "What shape do you see?",
    ),
    "zh": (
        "它是什么形状？",
        "它是什么形状的？",
        "这是什么形状？",
        "{P}的{thing}是什么形状？",
        "{P}是什么形状？",
        "这个{thing}是什么形状？",
        "它的形状是什么？",
    ),
}
COUNT_ALL = {
    "en": (
        "How many objects are there?",
        "How many shapes are there?",
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
COUNT_SHAPE = {
    "en": (
        "How many {shape} are there?",
        "How many {shape} are there in the {P}?",
        "How many {shape} are in the {P}?",
        "How many {shape} do you see?",
        "How many {shape} can you see?",
        "Count the {shape}.",
    ),
    "zh": (
        "{P}有几个{shape}？",
        "{P}有多少个{shape}？",
        "有几个{shape}？",
        "有多少个{shape}？",
        "你看到几个{shape}？",
    ),
}
COUNT_COLOUR = {
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
THING_WITH_SHAPE_ASKED = {"en": ("thing", "object"), "zh": ("物体", "东西", "图形")}
