"""Names of columns that people and tools write: images, labels, splits, values, bookkeeping.

    `File Name`, `file_name`, `FileName` -> filename     the form that all lists here have
    `is_public`, `fold`, `Unnamed: 0`    -> bookkeeping  no label, though it holds 0 and 1

Sources: pandas, R, Excel, Kaggle, OpenImages, FER2013, ChestX-ray14, Label Studio, fastai.
"""

import re
import unicodedata


def _collect_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "path", "file", "fname")
"""Usual names of the image column, the likeliest first."""

LABEL_COLUMNS = ("labels", "label", "tags", "classes")
"""Usual names of the label column, the likeliest first."""

OTHER_IMAGE_NAMES = _collect_words(
    "img photo picture pic images imgs photos pictures imagename imgname imagefile imgfile "
    "imagefilename imgpath filepath relpath relativepath photopath picturepath imageurl imageuri "
    "url uri gcsuri imageindex imageid imgid photoid fileid id name filenames "
    "datei dateiname dateipfad pfad bild bilddatei bildname fichier nomfichier nomdufichier chemin "
    "imagen archivo fichero nombrearchivo rutaimagen ruta imagem arquivo immagine nomefile "
    "bestand bestandsnaam afbeelding plik obraz zdjęcie soubor obrázek fil bildfil fájl kép "
    "файл изображение картинка путь имяфайла 图片 图像 文件 文件名 图片名 画像 "
    "ファイル名 파일 이미지"
)
"""Further names, as `simplify_name` returns them; `id` and `name` are among the last resorts."""

OTHER_LABEL_NAMES = _collect_words(
    "tag class choice choices taxonomy "
    "category categories keyword keywords labelname labelnames labellist classname "
    "classnames classlabel classlabels taglist tagnames findinglabels findings annotation "
    "annotations target targets categoryname attributes topics topic genres genre "
    "schlagwort schlagworte schlagwörter stichwort stichworte stichwörter kategorie kategorien "
    "klasse klassen etikett etiketten étiquette étiquettes etiquette etiquettes motclé motsclés "
    "motscles catégorie catégories classe mot etiqueta etiquetas categoría categorías categoria "
    "categorias clase clases palabrasclave etichetta etichette categorie classi parolechiave "
    "trefwoord trefwoorden labelnaam klass klasser nyckelord emneord kategori kategorier "
    "avainsanat luokka luokat etykieta etykiety kategoria tagi słowakluczowe štítek štítky "
    "címke címkék anahtarkelimeler etiket etiketler тег теги метка метки категория категории "
    "класс классы ключевыеслова 标签 类别 分类 標籤 类 タグ ラベル カテゴリ 태그 라벨 분류"
)
"""Further names of a column of labels."""

SURE_VALUE_NAMES = _collect_words(
    "confidence conf value present presence ispresent positive ispositive exists "
    "wert vorhanden valeur valor valore presente présent"
)
"""Names of the column that says whether the label of its row is there: 1, 0, or a fraction."""

VALUE_NAMES = SURE_VALUE_NAMES | _collect_words(
    "score prob probability truth state verified isverified relevance answer vote status polarity "
    "correct target groundtruth labelvalue verification"
)
"""Names that may say so too, where a picture has several rows, one for each label."""

SPLITS = {
    **dict.fromkeys(
        _collect_words(
            "train training trn tr trainset trainingset learn entraînement entrainement "
            "entrenamiento treino treinamento addestramento обучение trening 学習 訓練 训练 훈련"
        ),
        "train",
    ),
    **dict.fromkeys(
        _collect_words(
            "val valid validation dev devset development eval evaluation valset validationset "
            "validierung validación validacion validação convalida валидация walidacja "
            "検証 验证 검증"
        ),
        "val",
    ),
    **dict.fromkeys(
        _collect_words(
            "test testing tst testset testingset holdout publictest privatetest prueba teste prova "
            "тест テスト 測試 测试 評価 테스트"
        ),
        "test",
    ),
}
"""Word of a split column, a folder or a shard -> the split. `find_split` reads it."""

SPLIT_NAMES = _collect_words(
    "split splits set subset partition fold phase usage stage dataset datasplit splitname "
    "trainval traintest traintestsplit purpose sample mode"
)
"""Names of columns that may be the split, where at least half of their cells are its words."""

BARE_TRAIN = frozenset(("train", "training"))
"""Names of marks that are labels too, as in Pascal VOC: marks only beside another mark."""

SPLIT_MARKS = {
    **dict.fromkeys(
        _collect_words(
            "isvalid isval isvalidation isdev isinval inval isvalset valset val validation"
        ),
        "val",
    ),
    **dict.fromkeys(
        _collect_words("istrain istraining isintrain intrain istrainset trainset train training"),
        "train",
    ),
    **dict.fromkeys(
        _collect_words("istest istesting isintest intest istestset testset test isholdout holdout"),
        "test",
    ),
}
"""Name of a column of 1 and 0 -> the split of the rows that have 1."""

METADATA = _collect_words(
    "author photographer owner user creator copyright license licence credit camera lens device "
    "taken date datetime time timestamp year month day created modified uploaded location place "
    "city country latitude longitude gps url link title name description caption comment comments "
    "note notes remark text autor fotograf datum ort titel beschreibung bemerkung kamera fecha "
    "lieu date auteur titre commentaire"
)
"""Words in the names of columns of text that tell of a picture, and are no labels by themselves."""

_EXACT = _collect_words(
    "annotator rater annotationid leadtime createdat updatedat id ids idx index "
    " indexes no nr num number nummer lfdnr laufendenummer row rowid rownum "
    "rownumber rowname rownames seq sequence serial uid uuid guid hash md5 sha1 sha256 phash "
    "fold folds kfold cvfold stratifiedfold split splits set subset partition group groups "
    "source origin dataset version timestamp width height breite höhe largeur hauteur ancho "
    "largura altura area size filesize taille größe bytes channels orientation aspectratio "
    "resolution dpi pixels megapixels count counts total totals sum summe gesamt somme suma "
    "insgesamt anzahl nombre cantidad número numéro "
    "weight weights sampleweight score confidence conf prob probability loss "
    "public private verified reviewed approved deleted hidden valid invalid duplicate duplicated "
    "corrupt corrupted labeled labelled annotated completed skipped ignored excluded included "
    "usable iscrowd occluded truncated difficult groundtruth pseudolabel augmented "
    "skip exclude use cv rn falte geprüft öffentlich pli validé hasexif hasgps"
)
"""Names that tools write beside labels. Things that pictures show (`flag`) are not here."""

_FLAGS = _collect_words(
    "public private verified reviewed checked approved active deleted hidden flagged valid invalid "
    "duplicate duplicated dup corrupt corrupted labeled labelled annotated completed done skipped "
    "cancelled canceled ignored excluded included used usable crowd occluded truncated difficult "
    "group groupof depiction inside gold groundtruth train training test testing val validation "
    "dev holdout external internal synthetic augmented original copy new locked archived seed "
    "sample ok bad good clean noisy"
)
"""Words that make `is_...` or `was_...` a mark of the row, and no label."""

_LAST_WORDS = _collect_words("by cnt id ids idx uid uuid guid hash md5 count counts")
_GUESSED = _collect_words("pred preds predicted prediction predictions logit logits probs")
"""First or last words of what a model has said: `pred_cat`, `cat_logit`."""
_COUNTS = _collect_words("num nb count")
"""Words that make any name a number of things: `num_dogs`."""
_SHORT_COUNTS = _collect_words("n nr no total")
_COUNTED = _collect_words(
    "label labels tag tags class classes object objects box boxes bbox bboxes annotation "
    "annotations image images picture pictures instance instances face faces"
)
"""Words that make `n_...` and `total_...` a number of things; a total eclipse is a label."""
_CHECKS = _collect_words("review check checking work fix fixing labeling relabeling attention")
"""Words after `needs_`."""
_NUMBERED = _collect_words("unnamed fold kfold cv")
"""Words before a number: `Unnamed: 0`, `fold_3`."""
_MEASURES = _collect_words("width height size area index split fold")
_MEASURED = _collect_words(
    "image img picture photo file bbox box original orig pixel row label class sample item record "
    "data dataset page frame train test val cv k stratified group patient"
)
"""Words before a measure: `image_width`, `cv_fold`; plus size and banana split are labels."""


def split_words(name: str) -> list[str]:
    """Return the words of a column name, in lower case: `ImageID` is image, id."""
    name = re.sub(r"(?<=[a-zäöüß0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    name = unicodedata.normalize("NFKC", name).casefold()
    return re.findall(r"\d+|[^\W\d_]+", name)


def simplify_name(name: str) -> str:
    """Return the words of a column name as one: `File Name` and `file_name` are filename."""
    return "".join(split_words(name))


def is_bookkeeping(name: str) -> bool:
    """Return whether a name is one that tools write beside labels: an id, a fold, a flag, a size.

    name                                                                     result
    `fold`, `fold_3`, `kfold`, `is_public`, `patient_id`, `Unnamed: 0`       True
    `num_labels`, `n_tags`, `label_count`, `image_width`, `__index_level_0__` True
    `train`, `flag`, `is_smiling`, `plus size`, `n02123045`                  False
    """
    words = split_words(name)
    joined = "".join(words)
    if joined in BARE_TRAIN:
        return False
    if joined in _EXACT or joined in SPLIT_MARKS or re.fullmatch(r"(indexlevel|level)\d+", joined):
        return True
    if _GUESSED & {*words[:1], *words[-1:]}:
        return True
    if len(words) < 2:
        return False
    first, rest, last = words[0], words[1:], words[-1]
    return (
        (first in ("is", "was") and "".join(rest) in _FLAGS)
        or (first == "has" and rest[0] in _COUNTED)
        or (first == "needs" and rest[0] in _CHECKS)
        or last in _LAST_WORDS
        or (first in _COUNTS and rest[0].isalpha())
        or (first in _SHORT_COUNTS and rest[0] in _COUNTED)
        or (first in _NUMBERED and rest[0].isdecimal())
        or (last in _MEASURES and words[-2] in _MEASURED)
    )


def find_split(cell: str) -> str | None:
    """Return the split that a cell names, in its usual spellings; None where it names none.

    `Train`, `TRAINING`, `train_set`, `train2017` are train; `val`, `Validation set` are val.
    """
    return SPLITS.get(cell.casefold()) or SPLITS.get(re.sub(r"[\W\d_]", "", cell.casefold()))
