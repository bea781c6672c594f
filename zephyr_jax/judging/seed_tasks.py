"""Seed tasks and topics for self-instruct, written for this project: what a teacher sees as examples.

Short on purpose: they show that tasks differ in kind (explain, write, list, decide, correct, compute, plan), and the
variety of a run comes from the topics, the draws and the teacher's own sampling.
"""

from __future__ import annotations

TOPICS = (
    "cooking at home", "travel by train", "gardening in a small space", "personal budgets", "learning a language",
    "music theory", "the weather", "household repairs", "public libraries", "the human body", "photography",
    "bicycles", "job interviews", "writing letters", "board games", "the history of writing", "astronomy", "statistics",
    "spreadsheets", "programming in Python", "databases", "computer security", "electricity", "materials",
    "chemistry at school", "geometry", "probability", "logic puzzles", "poetry",
    "short stories", "film", "painting", "architecture", "maps",
    "rivers and seas", "animals in cities", "insects", "trees", "farming", "first aid", "sleep", "running", "teamwork",
    "meetings", "teaching children", "law in everyday life", "elections", "trade", "museums", "proverbs",
)  # fmt: skip

SEED_TASKS = (
    "Explain to a ten-year-old why the moon seems to change its shape.",
    "Write a polite message to a neighbour whose parcels keep arriving at my door.",
    "I have rice, eggs, two carrots and soy sauce. What can I cook in twenty minutes?",
    "Give three arguments for and three against a four-day working week.",
    "What is the difference between a virus and a bacterium?",
    "Rewrite this sentence so that it is easier to read: 'Notwithstanding the inclement conditions, we proceeded.'",
    "Write a Python function that returns the second largest number of a list, and say what it does with repeats.",
    "Plan a rainy Sunday afternoon in a city for two adults and a toddler.",
    "A shirt costs 40 after a discount of 20 percent. What did it cost before?",
    "Write a short poem about a lighthouse that nobody needs any more.",
    "List five questions that I should ask before I rent a flat.",
    "Why does bread rise, and what happens if I forget the salt?",
    "Summarise the plot of a fairy tale of your choice in exactly three sentences.",
    "My houseplant has yellow leaves at the bottom only. What are the likely causes?",
    "Suggest names for a café that doubles as a bookshop, and say which you would take.",
    "Is it true that we use only ten percent of our brain? Explain.",
    "Correct the mistakes in: 'He don't knows where is the station.'",
    "Compare tea and coffee as a drink for studying late.",
    "Describe a town square at dawn without using any word for a colour.",
    "How do I decide whether to repair or replace a ten-year-old washing machine?",
    "Translate 'Where can I leave my luggage?' into Spanish, and tell me how to pronounce it.",
    "Give me a riddle whose answer is 'shadow', and then a hint.",
    "Three friends share a bill of 57.60 and want to leave a tip of 10 percent. How much does each pay?",
    "Write the opening paragraph of a detective story set in a bakery.",
)
