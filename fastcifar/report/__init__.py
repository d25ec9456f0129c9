"""The page of a study: each table and figure of the course report with ours beside it, and what goes beyond it.

What goes in:
    results        run folders -> runs, trials, means; verdicts and effects
    predictions    what models say of each test image, counted
    course         what the course report prints: its trials, its tables, the numbers that no preset holds
    classes        what the class numbers mean

The chapters:
    reproduction   the report from front to back, of result_tables, curves, images and mixup
    search         what a search tried: history, importance, the best trials
    effects        the report's comparisons, paired over seeds
    own            in their place for a study of one's own: its trials, their curves and their effects
    findings       test accuracy, and what the models get wrong; calibration: how sure they are
    cost           time, speed and energy; provenance: how each run was made
    wording        numbers and names as the page writes them
    drawing        the style of the drawings; figures: the drawings (matplotlib -> SVG)

The page:
    document       the page as blocks; as_html, as_markdown and as_csv write them
    assembly       the chapters in their order -> document
    writing        document -> files in a folder
"""
