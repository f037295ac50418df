"""What cannot be seen in one object alone: do objects fit each other?

    world        all objects as they would be; index: where it finds them; entries: under what
    relations    what each object says about itself and others
    finding      what a check has to say about one object

Every other module looks at the world for one object and gives findings: of its kind, as it is named, or of what
several kinds have (annotations, exports, selectors, settings, placement); withdrawn: what others lose by a change.
"""
